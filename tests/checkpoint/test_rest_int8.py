"""``rest="int8"``: a byte for what is neither a weight nor a statistic, within a bound."""

import math
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin import reader
from vq_plugin.checkpoint import read_header, round_rest, stored_rest


def network(dtype: torch.dtype = torch.float32) -> nn.Sequential:
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv1d(4, 16, 3), nn.BatchNorm1d(16), nn.Flatten(), nn.Linear(96, 8), nn.LayerNorm(8)
    )
    with torch.no_grad():
        model[1].running_var.copy_(torch.logspace(-6, 2, 16))
        model[3].bias[0] = -3.0
    return model.to(dtype).eval()


@settings(max_examples=60, deadline=None)
@given(
    st.lists(st.floats(-(2.0**100), 2.0**100, width=32), min_size=1, max_size=8),
    st.sampled_from([torch.float32, torch.float64]),
)
def test_errors_are_within_a_part_of_the_largest(values: list[float], dtype: torch.dtype) -> None:
    value = nn.Parameter(torch.tensor(values, dtype=dtype))
    kept = stored_rest(value, "int8")
    assert kept.tensor.dtype is torch.int8
    assert kept.exponent is not None
    assert int(kept.tensor.abs().max()) <= 127
    largest = value.detach().abs().max()
    error = (kept.values.to(dtype) - value.detach()).abs().max()
    # Half a step of the smallest that float32 divides is less than what numbers so small are worth.
    assert float(error) <= float(largest) / 127 + 2.0**-127
    # Numbers as small as can be.
    assert not bool(kept.tensor.any()) or bool((kept.tensor % 2).any())
    # What was rounded stays.
    again = stored_rest(nn.Parameter(kept.values.to(dtype)), "int8")
    assert torch.equal(again.values, kept.values)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_file_holds_what_it_says(dtype: torch.dtype, tmp_path: Path) -> None:
    small = vq.compress(network(dtype), vq.KM(k=4))
    path = tmp_path / "model.vq"
    smaller, larger = vq.save(small, path, rest="int8"), None
    header, _ = read_header(path)
    kinds = {name: kind.dtype for name, kind in header.tensors.items()}
    ours = {"0.bias", "1.weight", "1.bias", "3.bias", "4.weight", "4.bias"}
    assert {name for name in ours if kinds[name] == "int8"} == ours
    assert kinds["1.running_var"] == kinds["1.running_mean"] == "float16"
    loaded, expected = vq.load(path, network(dtype)), round_rest(small, "int8")
    for name, value in expected.state_dict().items():
        assert torch.equal(loaded.state_dict()[name], value), name
    ((name, array),) = [(n, a) for n, a in reader.open_file(path).tensors.items() if n == "3.bias"]
    assert torch.equal(torch.from_numpy(array), expected.state_dict()[name])
    assert torch.equal(vq.open_file(path).tensors[name], expected.state_dict()[name])
    larger = vq.save(small, path, rest="float16")
    assert smaller < larger


def test_summaries_count_it() -> None:
    small = vq.compress(network(), vq.KM(k=4))
    values = 16 + 16 + 16 + 8 + 8 + 8
    saved = (
        vq.summary(small, rest="float16").other_nbytes - vq.summary(small, rest="int8").other_nbytes
    )
    assert saved == values


@pytest.mark.parametrize("value", [float("inf"), float("nan"), 3e38])
def test_what_no_step_reaches_stays_float(value: float) -> None:
    kept = stored_rest(nn.Parameter(torch.tensor([1.0, value])), "int8")
    assert kept.tensor.dtype.is_floating_point
    assert torch.equal(kept.tensor.isnan(), torch.tensor([False, math.isnan(value)]))


def test_half_precision_and_matrices_are_as_with_float16() -> None:
    half = nn.Parameter(torch.ones(3, dtype=torch.bfloat16))
    assert stored_rest(half, "int8").tensor.dtype is torch.bfloat16
    matrix: Tensor = nn.Parameter(torch.ones(3, 3))
    assert stored_rest(matrix, "int8").tensor.dtype is torch.float16


def test_another_word_is_refused(tmp_path: Path) -> None:
    small = vq.compress(network(), vq.KM(k=4))
    with pytest.raises(ValueError, match="neither None nor 'float16' nor 'int8'"):
        vq.save(small, tmp_path / "model.vq", rest="int4")  # type: ignore[arg-type]
