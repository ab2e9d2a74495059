"""Importance from calibration data, against explicit loops."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.importance import input_importance

FLOOR = 1e-3  # of the mean: an input that calibration never saw may still occur


def floored(mean_square: Tensor) -> Tensor:
    return mean_square + FLOOR * mean_square.mean()


def of(layer: nn.Module, batches: list[Tensor]) -> Tensor:
    return input_importance(layer, {"x": layer}, batches)["x"]


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
