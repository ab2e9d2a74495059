"""``layout="channels"``: sub-vectors of channels of one kernel position, shared books."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin import reader
from vq_plugin.fit.lloyd import lloyd_step, nearest_codes
from vq_plugin.fit.output.moments import Moments

CONV = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
KERNELS = [(3,), (1, 2), (3, 3), (2, 1, 3)]


def channels(method: str = "pq", **chosen: Any) -> vq.Scheme:
    return (vq.PQ if method == "pq" else vq.RQ)(k=4, layout="channels", **chosen)


def spelled_out(small: vq.CodebookWeight) -> Tensor:
    """The weight, code by code, as the documentation says it."""
    out, inputs, *kernel = small.shape
    positions = math.prod(kernel)
    stages, _, books, _, dim = small.codebooks.shape
    per_position = -(-inputs // dim)
    weight = torch.zeros(out, inputs, positions)
    for row in range(out):
        for position in range(positions):
            for piece in range(per_position):
                code = small.codes[:, row, position * per_position + piece].int()
                book = piece if books > 1 else 0
                center = sum(small.codebooks[t, 0, book, code[t]].float() for t in range(stages))
                if small.scale is not None:
                    center = center * small.scale[row].float()
                held = weight[row, piece * dim : (piece + 1) * dim, position]
                held.copy_(center[: len(held)])  # type: ignore[union-attr]
    return weight.reshape(small.shape)


@settings(max_examples=40, deadline=None)
@given(
    method=st.sampled_from(["pq", "rq"]),
    kernel=st.sampled_from(KERNELS),
    inputs=st.integers(4, 9),
    dim=st.sampled_from([2, 4]),
    codebooks=st.sampled_from(["subspace", "tensor"]),
    scale=st.sampled_from([None, "row"]),
    dtype=st.sampled_from(["float16", "int8"]),
    centers=st.sampled_from([4, 20]),
)
def test_every_way_to_decode_is_the_one_that_is_spelled_out(
    tmp_path_factory: pytest.TempPathFactory, method: str, kernel: tuple[int, ...], inputs: int,
    dim: int, codebooks: str, scale: str | None, dtype: str, centers: int,
) -> None:  # fmt: skip
    scheme = replace(
        channels(method, dim=dim, codebooks=codebooks, scale=scale, codebook_dtype=dtype),
        k=centers,
    )
    source = CONV[len(kernel)](inputs, 12, kernel)
    small = vq.compress(nn.Sequential(source), scheme)
    fitted = vq.quantize_weight(source.weight, scheme)
    expected = spelled_out(fitted)
    assert torch.allclose(fitted.decode(), expected, atol=1e-6)
    layer = small[0]
    assert torch.equal(layer.codes, fitted.codes)
    assert torch.allclose(layer.weight.detach(), expected, atol=1e-6)
    with torch.no_grad():
        assert torch.equal(layer._kept_weight(), layer.weight)
    path = tmp_path_factory.mktemp("layout") / "m.vq"
    vq.save(small, path)
    assert vq.open_file(path).layers["0"].axis == "channels"
    assert torch.equal(vq.open_file(path).layers["0"].decode(), layer.weight)
    assert (reader.open_file(path).layers["0"].decode() == layer.weight.detach().numpy()).all()
    loaded = vq.load(path, nn.Sequential(CONV[len(kernel)](inputs, 12, kernel)))
    assert torch.equal(loaded[0].codes, fitted.codes)
    assert torch.equal(loaded[0].weight, layer.weight)


@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
@pytest.mark.parametrize("inputs", [8, 10])
def test_sizes_are_those_of_the_tensors(codebooks: str, inputs: int) -> None:
    small = vq.quantize_weight(torch.randn(16, inputs, 3, 3), channels(dim=4, codebooks=codebooks))
    pieces = -(-inputs // 4)
    assert small.codes.shape == (1, 16, 9 * pieces)
    assert small.codebooks.shape == (1, 1, 1 if codebooks == "tensor" else pieces, 4, 4)
    assert small.nbytes == small.codes.numel() * 2 // 8 + small.codebooks.numel() * 2


@pytest.mark.parametrize(
    ("shape", "settings"),
    [
        ((8, 12), {}),
        ((8, 12, 1, 1), {}),
        ((8, 3, 3, 3), {}),  # fewer channels than dim
        ((8, 1, 5, 5), {}),  # depthwise
        ((8, 12, 3, 3), {"axis": "out"}),
    ],
)
@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
def test_where_the_layouts_are_the_same_they_give_the_same_bytes(
    shape: tuple[int, ...], settings: dict[str, str], codebooks: str
) -> None:
    weight = torch.randn(shape)
    flat = vq.quantize_weight(weight, vq.PQ(k=4, codebooks=codebooks, **settings))
    small = vq.quantize_weight(weight, channels(codebooks=codebooks, **settings))
    assert torch.equal(small.codes, flat.codes)
    assert torch.equal(small.codebooks, flat.codebooks)
    assert small.geometry == flat.geometry


def test_a_book_is_fitted_to_all_positions_of_its_channels() -> None:
    weight = torch.randn(32, 8, 3, 3)
    small = vq.quantize_weight(weight, channels(dim=4))
    for group in range(2):
        # The same points in the same order, as a weight of their own.
        points = weight[:, 4 * group : 4 * group + 4].flatten(2).mT.reshape(-1, 4)
        own = vq.quantize_weight(points, vq.PQ(k=4, dim=4))
        error = (own.decode() - points).square().mean()
        decoded = small.decode()[:, 4 * group : 4 * group + 4].flatten(2).mT.reshape(-1, 4)
        assert (decoded - points).square().mean() <= 1.1 * error


def moments(inputs: int, groups: int = 1, samples: int = 200) -> Moments:
    """Of inputs that go together."""
    mixed = torch.randn(groups, samples, inputs) @ torch.randn(groups, inputs, inputs)
    second = mixed.mT @ mixed / samples
    return Moments(second.diagonal(0, 1, 2).mean(0), second, mean=mixed.mean(1))


def reordered(known: Moments, order: Tensor) -> Moments:
    assert isinstance(known.second, Tensor)
    assert known.mean is not None
    second = known.second[:, order][:, :, order]
    return Moments(known.importance[order], second, mean=known.mean[:, order])


def test_a_calibrated_fit_is_that_of_a_matrix_with_the_inputs_in_the_order_of_the_codes() -> None:
    weight = torch.randn(24, 8, 3, 3)
    known = moments(72)
    order = torch.arange(72).reshape(8, 9).T.flatten()
    matrix = weight.flatten(1)[:, order]
    per_weight = replace(known, importance=known.importance.reshape(8, 3, 3))
    small = vq.quantize_weight(weight, channels(codebooks="tensor"), moments=per_weight)
    flat = vq.quantize_weight(
        matrix, vq.PQ(k=4, codebooks="tensor"), moments=reordered(known, order)
    )
    assert torch.equal(small.codes, flat.codes)
    assert torch.equal(small.codebooks, flat.codebooks)
    assert torch.allclose(small.bias_shift, flat.bias_shift, atol=1e-5)  # type: ignore[arg-type]


@pytest.mark.parametrize("method", ["pq", "rq"])
@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
@pytest.mark.parametrize(("inputs", "groups"), [(8, 1), (10, 1), (7, 2)])
def test_calibration_lowers_the_error_of_outputs(
    method: str, codebooks: str, inputs: int, groups: int
) -> None:
    weight = torch.randn(24, inputs, 3, 3)
    known = moments(9 * inputs, groups)
    known = replace(known, importance=known.importance.reshape(inputs, 3, 3))
    scheme = channels(method, dim=4, codebooks=codebooks)
    plain = vq.quantize_weight(weight, scheme, importance=known.importance)
    small = vq.quantize_weight(weight, scheme, moments=known)
    assert known.output_error(small.decode() - weight) < 0.8 * known.output_error(
        plain.decode() - weight
    )


@pytest.mark.parametrize("method", ["pq", "rq"])
@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
@pytest.mark.parametrize("scale", [None, "row"])
def test_lloyds_step_lowers_the_error(method: str, codebooks: str, scale: str | None) -> None:
    weight = torch.randn(16, 6, 3, 3)
    small = vq.quantize_weight(weight, channels(method, dim=4, codebooks=codebooks, scale=scale))
    assert torch.equal(nearest_codes(weight, small).decode(), small.decode())
    moved = weight + 0.3 * torch.randn_like(weight)
    errors = [
        (each.decode() - moved).square().sum()
        for each in (small, nearest_codes(moved, small), lloyd_step(moved, small))
    ]
    assert errors[2] < errors[1] < errors[0]


def test_gradients_reach_the_books_from_every_position() -> None:
    layer = vq.compress(nn.Sequential(nn.Conv2d(6, 8, 3)), channels(dim=4))[0]
    x = torch.randn(2, 6, 5, 5)
    layer(x).square().sum().backward()
    grad = layer.codebooks.grad.clone()
    base = layer.codebooks.detach().clone()
    step = torch.zeros_like(base)
    step[0, 0, 1, 2, 0] = 0.0625

    def loss(table: Tensor) -> Tensor:
        layer.codebooks.data.copy_(table)
        with torch.no_grad():
            total: Tensor = layer(x).double().square().sum()
        return total

    slope = (loss(base + step) - loss(base - step)) / 0.125
    assert slope == pytest.approx(float(grad[0, 0, 1, 2, 0]), rel=0.02)


def test_other_layouts_are_refused() -> None:
    with pytest.raises(ValueError, match="pq: layout must be one of 'flat', 'channels'"):
        vq.parse_scheme("pq(layout=last)")


def test_files_of_the_flat_layout_say_what_they_said(tmp_path: Path) -> None:
    small = vq.compress(nn.Sequential(nn.Conv2d(8, 8, 3)), vq.PQ(k=4, layout="flat"))
    vq.save(small, tmp_path / "m.vq")
    assert vq.open_file(tmp_path / "m.vq").layers["0"].axis == "in"
