"""Low ranks: against decompositions by torch, and convolutions by torch."""

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from tests.factorize.convolutions import convolutions, convolved


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, s, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * s[:rank]) @ v[:rank]


def low_rank(rows: int, columns: int, rank: int) -> Tensor:
    return torch.randn(rows, rank) @ torch.randn(rank, columns)


def test_linear_is_the_truncated_decomposition() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(100, 60)
    small = vq.factorize(layer, vq.SVD(rank=12))
    expected = truncated(layer.weight.detach(), 12).float()
    assert isinstance(small.first, nn.Linear)
    assert isinstance(small.second, nn.Linear)
    assert small.first.weight.shape == (12, 100)
    assert small.first.bias is None
    torch.testing.assert_close(small.second.weight @ small.first.weight, expected)
    x = torch.randn(5, 3, 100)
    torch.testing.assert_close(small(x), functional.linear(x, expected, layer.bias))


def test_factors_are_of_one_size() -> None:
    small = vq.factorize(nn.Linear(100, 60), vq.SVD(rank=5))
    sizes = small.first.weight.norm(dim=1), small.second.weight.norm(dim=0)
    torch.testing.assert_close(*sizes)


@pytest.mark.parametrize("energy", [0.1, 0.5, 0.9, 0.999])
def test_energy_is_what_the_lowest_rank_keeps(energy: float) -> None:
    torch.manual_seed(0)
    layer = nn.Linear(300, 80)
    spectrum = torch.linalg.svdvals(layer.weight.detach().double()).square()
    layer.weight.data *= 0.5 ** torch.arange(80.0).div(8).unsqueeze(1)
    spectrum = torch.linalg.svdvals(layer.weight.detach().double()).square()
    kept = spectrum.cumsum(0) / spectrum.sum()
    small = vq.factorize(layer, vq.SVD(energy=energy))
    assert small.first.out_features == int((kept < energy).sum()) + 1


def test_all_energy_is_the_rank_of_the_matrix() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(90, 70)
    layer.weight.data = low_rank(70, 90, 7)
    small = vq.factorize(layer, vq.SVD(energy=1))
    assert small.first.out_features == 7
    torch.testing.assert_close(small.weight, layer.weight, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rate", [1.5, 3, 10.0])
def test_rate_is_reached_by_the_highest_rank(rate: float) -> None:
    for layer in (nn.Linear(200, 50), nn.Conv2d(16, 64, 3, groups=2)):
        small = vq.factorize(layer, vq.SVD(rate=rate))
        size = small.first.weight.numel() + small.second.weight.numel()
        rank = small.factor.rank
        assert size * rate <= layer.weight.numel() < size * (rank + 1) / rank * rate


@settings(max_examples=25, deadline=None)
@given(layer=convolutions(positions=2, outputs=8), spatial=st.booleans())
def test_convolutions_of_all_forms(layer: Any, spatial: bool) -> None:
    dims = len(layer.kernel_size)
    split = "spatial" if dims > 1 and spatial else "channel"
    small = vq.factorize(layer, vq.SVD(rank=1, split=split))  # type: ignore[arg-type]
    x = torch.randn(2, layer.in_channels, *[7] * dims)
    expected = convolved(layer, small.weight.detach(), x)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small(x[0]), expected[0], rtol=1e-4, atol=1e-5)


def test_channel_split_is_the_best_of_its_rank_in_each_group() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 40, 3, groups=2)
    small = vq.factorize(layer, vq.SVD(rank=6))
    for group in (slice(0, 20), slice(20, 40)):
        expected = truncated(layer.weight.detach()[group].flatten(1), 6).float()
        torch.testing.assert_close(small.weight[group].flatten(1), expected)


def test_spatial_split_is_the_best_of_its_rank() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 10, (3, 5))
    small = vq.factorize(layer, vq.SVD(rank=5, split="spatial"))
    assert small.first.kernel_size == (3, 1)
    assert small.second.kernel_size == (1, 5)
    # Row (c, i), column (o, j): the matrix of Jaderberg et al., entry by entry.
    matrix = torch.empty(12, 50)
    for o, c, i, j in itertools.product(range(10), range(4), range(3), range(5)):
        matrix[3 * c + i, 5 * o + j] = layer.weight[o, c, i, j].detach()
    lost = torch.linalg.svdvals(matrix.double())[5:].square().sum().float()
    change = (small.weight - layer.weight).detach()
    torch.testing.assert_close(change.square().sum(), lost)


@pytest.mark.parametrize("split", ["channel", "spatial"])
def test_calibration_keeps_outputs(split: Any) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 40, 3, padding=1)
    mixed = torch.randn(8, 8) * torch.logspace(0, -2, 8)
    images = functional.avg_pool2d(torch.randn(64, 8, 14, 14), 3, 1)
    images = torch.einsum("nchw,cd->ndhw", images, mixed) + 0.3
    factor = vq.SVD(rank=5, split=split)
    plain = vq.factorize(layer, factor)
    small = vq.factorize(layer, factor, [images])
    wanted = layer(images)

    def error(model: nn.Module) -> float:
        return ((model(images) - wanted).square().mean() / wanted.var()).item()

    assert error(small) < 0.4 * error(plain)
    # The bias takes up the mean.
    before, after = ((m(images) - wanted).mean((0, 2, 3)).abs().max() for m in (plain, small))
    assert after < 0.05 * before


def test_calibrated_linear_is_the_best_for_its_inputs() -> None:
    torch.manual_seed(0)
    layer = nn.Linear(40, 30, bias=False)
    x = torch.randn(5000, 40) @ (torch.randn(40, 40) * torch.logspace(0, -1, 40))
    outputs = (x @ layer.weight.T).detach()
    # No weight of rank r does better than the best outputs of rank r.
    least = torch.linalg.svdvals(outputs.double())[6:].square().sum()
    small = vq.factorize(layer, vq.SVD(rank=6), [x])
    error = (small(x) - outputs).double().square().sum()
    assert least <= error <= 1.05 * least


def test_calibration_of_wide_layers_and_of_few_samples() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(1500, 40), torch.randn(20, 1500)
    plain, small = vq.factorize(layer, vq.SVD(rank=19)), vq.factorize(layer, vq.SVD(rank=19), [x])
    wanted = layer(x)
    assert (small(x) - wanted).square().mean() < 0.01 * (plain(x) - wanted).square().mean()
    with pytest.warns(UserWarning, match="more than 4608"):
        wide = vq.factorize(nn.Linear(5000, 10), vq.SVD(rank=2), [torch.randn(9, 5000)])
    assert wide(torch.randn(1, 5000)).isfinite().all()
