"""Moments of inputs from calibration data, against explicit loops."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from tests.fit.problems import correlated_inputs
from vq_plugin.calibration import input_moments, sample, statistics
from vq_plugin.calibration.sample import sample_of
from vq_plugin.fit.output.moments import Moments, Samples
from vq_plugin.nn import find_slots
from vq_plugin.nn.inputs import convolved

FLOOR = 1e-3  # of the mean: an input that calibration never saw may still occur


def floored(mean_square: Tensor) -> Tensor:
    return mean_square + FLOOR * mean_square.mean()


def moments(layer: nn.Module, batches: list[Tensor]) -> Moments:
    slot = replace(find_slots(layer)[""], names=("x",))
    return input_moments(layer, [slot], batches)["x"]


def of(layer: nn.Module, batches: list[Tensor]) -> Tensor:
    return moments(layer, batches).importance


def test_linear_weights_count_by_the_mean_square_of_their_input() -> None:
    layer = nn.Linear(6, 4)
    batches = [torch.randn(5, 6), torch.randn(2, 7, 6), torch.randn(6)]
    rows = torch.cat([b.reshape(-1, 6) for b in batches])
    expected = torch.tensor([sum(float(r[j]) ** 2 for r in rows) / len(rows) for j in range(6)])
    full = of(layer, batches).broadcast_to(4, 6)
    assert torch.allclose(full, floored(expected).expand(4, 6), rtol=1e-5)


@settings(max_examples=25)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 3, 6]),
    per_group=st.integers(1, 2),
    batched=st.booleans(),
)
def test_convolution_weights_count_by_the_channel_of_their_own_group(
    dims: int, groups: int, per_group: int, batched: bool
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(6, groups * per_group, 2, groups=groups)
    sizes = torch.rand(6) * 3
    x = torch.randn(3, 6, *[4] * dims) * sizes.reshape(-1, *[1] * dims)
    mean = x.square().transpose(0, 1).reshape(6, -1).mean(1)
    batches = [x] if batched else list(x)
    result = of(layer, batches).broadcast_to(layer.weight.shape)
    floor = FLOOR * float(mean.mean())
    for out in range(groups * per_group):
        for channel in range(6 // groups):
            source = (out // per_group) * (6 // groups) + channel
            assert torch.allclose(result[out, channel], mean[source] + floor, rtol=1e-4)


def test_it_predicts_the_output_error_of_independent_inputs() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2, bias=False)
    sizes = torch.tensor([0.1, 1.0, 2.0, 0.5])
    x = torch.randn(400, 4, 5, 5) * sizes.reshape(1, 4, 1, 1)
    change = 0.1 * torch.randn_like(layer.weight)
    predicted = (of(layer, [x]) * change.square()).sum((1, 2, 3))
    actual = functional.conv2d(x, change, groups=2).square().mean((0, 2, 3))
    assert torch.allclose(predicted, actual, rtol=0.1)


def test_embedding_rows_count_by_how_often_they_are_used() -> None:
    layer = nn.Embedding(5, 3)
    batches = [torch.tensor([[0, 0, 1], [4, 0, 1]]), torch.tensor([0, 4])]
    frequency = torch.tensor([4.0, 2, 0, 0, 2]) / 8
    full = of(layer, batches).broadcast_to(5, 3)
    assert torch.allclose(full, floored(frequency).unsqueeze(1).expand(5, 3))


def test_batches_of_any_cut_give_the_same() -> None:
    layer, x = nn.Linear(6, 4), torch.randn(60, 6)
    whole = of(layer, [x])
    assert torch.allclose(of(layer, list(x.split(7))), whole, rtol=1e-6)


def test_inputs_that_are_always_zero_leave_all_weights_alike() -> None:
    result = of(nn.Linear(6, 4), [torch.zeros(3, 6)])
    assert (result > 0).all()
    assert len(result.unique()) == 1


@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_bad_inputs_are_an_error_that_names_the_layer(value: float) -> None:
    with pytest.raises(ValueError, match="layer 'x': calibration gave it NaN or infinite inputs"):
        of(nn.Linear(6, 4), [torch.full((2, 6), value)])


def test_large_half_precision_inputs_do_not_overflow() -> None:
    result = of(nn.Linear(6, 4).half(), [torch.full((2, 6), 6e4, dtype=torch.float16)])
    assert torch.allclose(result, torch.full((6,), 3.6e9 * (1 + FLOOR)), rtol=1e-2)


def test_moments_of_a_linear_layer() -> None:
    layer = nn.Linear(6, 4)
    batches = [torch.randn(5, 6) + 1, torch.randn(2, 7, 6), torch.randn(6)]
    rows = torch.cat([b.reshape(-1, 6) for b in batches])
    found = moments(layer, batches)
    assert found.second is not None
    assert found.mean is not None
    assert torch.allclose(found.second[0], rows.T @ rows / len(rows), rtol=1e-4, atol=1e-5)
    assert torch.allclose(found.mean[0], rows.mean(0), rtol=1e-4, atol=1e-5)
    assert moments(nn.Linear(6, 4, bias=False), batches).mean is None


@settings(max_examples=40, deadline=None)
@given(
    dims=st.integers(1, 3),
    groups=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    stride=st.integers(1, 2),
    padding=st.sampled_from([0, 1, "same"]),
    dilation=st.integers(1, 2),
    mode=st.sampled_from(["zeros", "reflect", "circular"]),
    batched=st.booleans(),
)
def test_a_convolution_is_its_weight_times_the_patches(
    dims, groups, kernel, stride, padding, dilation, mode, batched
) -> None:
    kind = (nn.Conv1d, nn.Conv2d, nn.Conv3d)[dims - 1]
    layer = kind(
        4, 8, kernel, stride=1 if padding == "same" else stride, padding=padding,
        dilation=dilation, groups=groups, padding_mode=mode, bias=False,
    )  # fmt: skip
    x = torch.randn(3, 4, *range(5, 5 + dims))
    x = x if batched else x[0]
    with torch.no_grad():
        expected = layer(x)
        [patches] = convolved(layer, {"input": x}, "weight")
        every = patches.rows(torch.arange(patches.shape[1]))
        rows = layer.weight.reshape(groups, 8 // groups, -1) @ every.mT
    # (samples, outputs, places) to (outputs, samples and places)
    channel = 1 if batched else 0
    assert torch.allclose(
        rows.reshape(8, -1), expected.movedim(channel, 0).reshape(8, -1), atol=1e-5
    )


def test_depthwise_patches_are_read_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Conv2d(6, 6, 3, groups=6), torch.randn(7, 6, 5, 5)
    whole = moments(layer, [x])
    monkeypatch.setattr(statistics, "_PIECE", 6 * 9 * 25 * 2)
    pieces = moments(layer, [x])
    assert whole.second is not None
    assert pieces.second is not None
    assert whole.second.shape == (6, 9, 9)
    assert torch.allclose(pieces.second, whole.second, rtol=1e-5, atol=1e-6)


@settings(max_examples=60)
@given(st.lists(st.integers(1, 400), min_size=1, max_size=8), st.integers(1, 300))
def test_a_sample_has_its_share_of_every_batch_and_of_all_its_parts(
    batches: list[int], most: int
) -> None:
    before = 0
    for rows in batches:
        index = sample_of(rows, before, most)
        share = most / (before + rows)
        before += rows
        if index is None:
            assert share >= 1 - 1 / rows
            continue
        assert len(index) == -(-most * rows // before) < rows
        # One of every stretch of equal length.
        stretch, starts = rows / len(index), torch.arange(len(index)).double() * rows / len(index)
        assert (index > starts - 1).all()
        assert (index < starts + stretch + 1e-9).all()
        assert 0 <= int(index[0]) <= int(index[-1]) < rows


def test_a_sample_of_places_stands_for_all(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 6, 3, groups=2, padding=1)
    x = functional.avg_pool2d(torch.randn(40, 4, 34, 34), 3, 1) + torch.rand(4, 1, 1)
    # Later batches are larger, images and parts of them differ.
    x *= torch.linspace(1, 4, 40).reshape(-1, 1, 1, 1) * torch.linspace(0.5, 2, 32)
    patches = functional.unfold(x, 3, padding=1).transpose(1, 2).reshape(-1, 2, 18).transpose(0, 1)
    full = patches.mT.double() @ patches.double() / patches.shape[1]
    monkeypatch.setattr(sample, "_NUMBERS", 1 << 17)
    for batches in ([x], list(x.split(3)), list(x)):
        found = moments(layer, batches)
        assert found.second is not None
        assert found.mean is not None
        assert (found.second - full).norm() < 0.03 * full.norm()
        assert (found.mean - patches.mean(1)).norm() < 0.05 * patches.mean(1).norm()
        again = moments(layer, batches)
        assert torch.equal(again.second, found.second)  # type: ignore[arg-type]


def test_a_bad_place_is_found_where_the_sample_is_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "most_rows", lambda groups, inputs: 16)
    layer, x = nn.Conv2d(2, 3, 1), torch.randn(5, 2, 20, 20)
    assert moments(layer, [x]).second is not None
    x[3, 1, 7, 11] = torch.inf
    with pytest.raises(ValueError, match="layer 'x': calibration gave it NaN or infinite inputs"):
        moments(layer, [x])


def test_too_many_inputs_go_by_their_squares_and_a_warning_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(statistics, "MOST_INPUTS", 5)
    layer, x = nn.Linear(6, 40), torch.randn(50, 6)
    with pytest.warns(UserWarning, match="layer 'x' has 6 inputs, more than 5"):
        found = moments(layer, [x])
    assert found.second is None
    assert found.mean is not None
    with pytest.warns(UserWarning, match="more than 5"):
        small = vq.compress(layer, vq.PQ(k=4, dim=2), [x])
    by_importance = vq.quantize_weight(layer.weight, vq.PQ(k=4, dim=2), found.importance)
    assert torch.equal(small.weight, by_importance.decode())


def test_the_threads_do_not_change_a_byte_of_the_moments(set_threads) -> None:
    layer, x = nn.Linear(700, 4), torch.randn(300, 700)
    found = []
    for threads in (1, 2, 3):
        set_threads(threads)
        found.append(moments(layer, list(x.split(128))))
    for other in found[1:]:
        assert torch.equal(other.second, found[0].second)
        assert torch.equal(other.mean, found[0].mean)


@pytest.mark.parametrize("batches", [[6], [3, 3, 1], [10, 3], [4, 20]])
def test_few_samples_of_many_inputs_are_kept(
    batches: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(statistics, "_MANY_INPUTS", 40)
    layer = nn.Linear(40, 4)
    x = torch.randn(sum(batches), 40) + 1
    found = moments(layer, list(x.split(batches)))
    if len(x) <= 10:
        assert isinstance(found.second, Samples)
        assert torch.equal(found.second.rows[0], x)
    else:
        # Those of earlier batches are part of the square.
        assert isinstance(found.second, Tensor)
        assert torch.allclose(found.second[0], x.T @ x / len(x), rtol=1e-4, atol=1e-5)
    assert found.mean is not None
    assert torch.allclose(found.mean[0], x.mean(0), rtol=1e-4, atol=1e-5)


def test_kept_samples_fit_as_their_square_does(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, x = nn.Linear(256, 24), correlated_inputs(64, 256)
    error = []
    for many in (256, 257):
        monkeypatch.setattr(statistics, "_MANY_INPUTS", many)
        small = vq.compress(layer, vq.KM(k=4), [x])
        with torch.no_grad():
            error.append(float((small(x) - layer(x)).square().mean()))
    assert error[0] == pytest.approx(error[1], rel=0.02)


def test_inputs_are_read_once_for_pairs_and_squares(monkeypatch: pytest.MonkeyPatch) -> None:
    layer, calls = nn.MultiheadAttention(8, 2), []
    forward = nn.MultiheadAttention.forward

    def counted(self, query, key, value, need_weights=True):
        calls.append(need_weights)
        return forward(self, query, key, value, need_weights=need_weights)

    monkeypatch.setattr(nn.MultiheadAttention, "forward", counted)
    x = torch.randn(5, 3, 8)
    input_moments(layer, find_slots(layer).values(), [(x, x, x)])
    # What heads attended to takes a pass of its own.
    assert calls == [False, True]


def test_squares_of_places_do_not_depend_on_a_sample(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(statistics, "most_rows", lambda groups, inputs: 4)
    layer, x = nn.Conv2d(6, 4, 1, groups=2), torch.randn(3, 6, 5, 5)
    mean = x.square().mean((0, 2, 3))
    found = of(layer, [x])[..., 0, 0]
    assert torch.allclose(found[[0, 2]].flatten(), floored(mean), rtol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_squares_of_places_of_other_dtypes(dtype: torch.dtype) -> None:
    layer, x = nn.Conv2d(6, 4, 1, groups=2).to(dtype), torch.randn(3, 6, 5, 5).to(dtype)
    mean = x.float().square().mean((0, 2, 3))
    found = of(layer, [x])[..., 0, 0]
    assert torch.allclose(found[[0, 2]].flatten(), floored(mean), rtol=1e-5)
