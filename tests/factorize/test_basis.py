"""Bases of kernels: against principal components and convolutions by torch."""

import math
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from torch import Tensor, nn

import vq_plugin as vq
from tests.factorize.convolutions import convolutions, convolved
from vq_plugin.factorize.layers import whole_kernels


def components(kernels: Tensor, count: int) -> Tensor:
    """Kernels ``(n, positions)`` as the best mixes of ``count``, by the moments of positions."""
    values = kernels.double().numpy()
    _, vectors = np.linalg.eigh(values.T @ values)
    largest = vectors[:, -count:]
    return torch.from_numpy(values @ largest @ largest.T).float()


def test_kernels_are_mixes_of_their_principal_components() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 20, 3)
    small = vq.factorize(layer, vq.Basis(d=4))
    assert small.basis.weight.shape == (4, 1, 3, 3)
    assert small.coefficients.weight.shape == (20, 32, 1, 1)
    expected = components(layer.weight.detach().reshape(160, 9), 4).reshape(20, 8, 3, 3)
    torch.testing.assert_close(small.weight, expected)


@settings(max_examples=25, deadline=None)
@given(layer=convolutions(positions=3, outputs=4))
def test_convolutions_of_all_forms(layer: Any) -> None:
    small = vq.factorize(layer, vq.Basis(math.prod(layer.kernel_size) - 2))
    x = torch.randn(2, layer.in_channels, *[7] * len(layer.kernel_size))
    expected = convolved(layer, small.weight.detach(), x)
    torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(small(x[0]), expected[0], rtol=1e-4, atol=1e-5)
    assert small(x[:0]).shape == (0, *expected.shape[1:])


def test_exact_where_kernels_are_mixes_of_so_many() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 20, 3, stride=2, padding=1, groups=2)
    layer.weight.data = (torch.randn(80, 3) @ torch.randn(3, 9)).reshape(20, 4, 3, 3)
    small = vq.factorize(layer, vq.Basis(3))
    x = torch.randn(2, 8, 9, 9)
    torch.testing.assert_close(small(x), layer(x), rtol=1e-4, atol=1e-4)


def test_as_many_as_positions_take_more_weights_and_stay() -> None:
    with pytest.warns(UserWarning, match=r"basis\(d=9\) has 1,521 weights in the place of 1,440"):
        assert isinstance(vq.factorize(nn.Conv2d(8, 20, 3), vq.Basis(9)), nn.Conv2d)


class Chain(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(6, 6, 3, padding=1), nn.Conv2d(6, 6, 3, padding=1, stride=2)
        self.c = nn.Conv2d(6, 8, 3)

    def forward(self, x: Tensor) -> Tensor:
        output: Tensor = self.c(self.b(self.a(x).relu()).relu())
        return output


def test_shared_coefficients_are_those_of_all_kernels_together() -> None:
    torch.manual_seed(0)
    model = Chain()
    small: Any = vq.factorize(model, {"re:[ab]": vq.Basis(4, shared=True)})
    assert small.a.coefficients.weight is small.b.coefficients.weight
    assert small.a.basis.weight is not small.b.basis.weight
    assert isinstance(small.c, nn.Conv2d)
    pairs = [each.weight.detach().reshape(36, 9) for each in (model.a, model.b)]
    expected = components(torch.cat(pairs, 1), 4)
    torch.testing.assert_close(small.a.weight.reshape(36, 9), expected[:, :9])
    torch.testing.assert_close(small.b.weight.reshape(36, 9), expected[:, 9:])


def test_shared_coefficients_train_with_all_layers() -> None:
    torch.manual_seed(0)
    model = Chain()
    small: Any = vq.factorize(model, {"re:[ab]": vq.Basis(6, shared=True)})
    x = torch.randn(16, 6, 10, 10)
    wanted = model(x).detach()
    optimizer = torch.optim.Adam(small.parameters(), lr=1e-2)
    losses = []
    for _ in range(40):
        optimizer.zero_grad()
        loss = (small(x) - wanted).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
    assert small.a.coefficients.weight is small.b.coefficients.weight


def test_each_pattern_shares_by_itself() -> None:
    factor = vq.Basis(4, shared=True)
    two = nn.ModuleList([Chain(), Chain()])
    small: Any = vq.factorize(two, {"re:0.[ab]": factor, "re:1.[ab]": factor})
    weights = [small[at].a.coefficients.weight for at in (0, 1)]
    assert weights[0] is small[0].b.coefficients.weight
    assert weights[0] is not weights[1]


def test_unlike_forms_cannot_share() -> None:
    with pytest.raises(ValueError, match=r"'a' and 'c' cannot share coefficients.*\(6, 6, 3, 3\)"):
        vq.factorize(Chain(), vq.Basis(4, shared=True))


def test_calibration_keeps_outputs() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(8, 40, 5, padding=2)
    images = nn.functional.avg_pool2d(torch.randn(16, 8, 20, 20), 5, 1)
    wanted = layer(images)
    plain, small = (vq.factorize(layer, vq.Basis(4), data) for data in (None, [images]))
    before, after = ((each(images) - wanted).square().mean() for each in (plain, small))
    assert after < 0.6 * before


@pytest.mark.parametrize("groups", [1, 2])
def test_calibrated_coefficients_are_the_least_squares_fit(groups: int) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, groups=groups)
    images = torch.randn(40, 4, 8, 8) + 0.5
    small: Any = vq.factorize(layer, vq.Basis(2), [images])
    with torch.no_grad():
        wanted, outputs = layer(images), small(images)
        size = 4 // groups
        left = 0.0
        for group in range(groups):
            channels = images[:, group * size : (group + 1) * size].flatten(0, 1).unsqueeze(1)
            filtered = small.basis(channels).reshape(40, -1, 36).transpose(1, 2).flatten(0, 1)
            design = torch.cat([filtered, torch.ones(len(filtered), 1)], 1).double().numpy()
            rows = wanted[:, 8 // groups * group : 8 // groups * (group + 1)]
            target = rows.flatten(2).transpose(1, 2).flatten(0, 1).double().numpy()
            best = target - design @ np.linalg.lstsq(design, target, rcond=None)[0]
            left += (best**2).sum()
    error = float((outputs - wanted).double().square().sum())
    # Of calibration part of the correlation is not believed.
    assert left <= error <= 1.1 * left


@settings(max_examples=15, deadline=None)
@given(layer=convolutions(positions=3, outputs=4))
def test_as_one_convolution_it_computes_the_same(layer: Any) -> None:
    small = vq.factorize(layer, vq.Basis(math.prod(layer.kernel_size) - 2))
    x = torch.randn(2, layer.in_channels, *[7] * len(layer.kernel_size))
    expected = small(x)
    with whole_kernels(small):
        torch.testing.assert_close(small(x), expected, rtol=1e-4, atol=1e-5)
    assert "forward" not in vars(small)
