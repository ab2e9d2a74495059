"""Row scales as whole numbers: exact, short, safe to read."""

from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vq_plugin as vq
from vq_plugin.coding.scales import EIGHTHS, decode_scales, encode_scales
from vq_plugin.rounding import round_scales, stored_scales


def test_eighths_are_those_of_two() -> None:
    assert [round(1024 * 2 ** (at / 8)) for at in range(8)] == list(EIGHTHS)


@given(st.lists(st.one_of(st.just(0.0), st.floats(2.0**-14, 60_000)), max_size=200))
def test_rounded_scales_come_back(values: list[float]) -> None:
    scale = round_scales(torch.tensor(values, dtype=torch.float32)).half().numpy()
    data = encode_scales(scale)
    if data is not None:
        assert data.size < scale.nbytes
        assert decode_scales(data, len(scale)).tobytes() == scale.tobytes()


@given(st.floats(2.0**-14, 62_000))
def test_rounding_goes_to_the_nearest_power_and_stays_there(value: float) -> None:
    one = torch.tensor([value], dtype=torch.float32)
    rounded = round_scales(one)
    assert abs(float((rounded / one).log2())) < 1 / 16 + 1e-3
    assert torch.equal(round_scales(rounded), rounded)
    assert torch.equal(rounded.half().float(), rounded)


def test_rows_of_zeros_stay_zero() -> None:
    weight = torch.randn(96, 20, generator=torch.Generator().manual_seed(0))
    weight[::5] = 0
    small = vq.quantize_weight(weight, vq.Uniform(step=0.3, scale="row"))
    assert small.scale is not None
    assert stored_scales(small.scale).dtype == torch.uint8
    assert not small.scale[::5].any()
    assert not small.decode()[::5].any()


@pytest.mark.parametrize("value", [0.0, 2.0**-15, 1e-30, 70_000.0, 1e30])
def test_what_float16_has_no_normal_number_for_stays(value: float) -> None:
    assert float(round_scales(torch.tensor([value]))) == float(torch.tensor(value))


@pytest.mark.parametrize(
    "odd",
    [1.01, -1.0, 2.0**-20, float("inf"), float("nan")],
    ids=["off", "sign", "small", "inf", "nan"],
)
def test_other_scales_are_not_coded(odd: float) -> None:
    scale = torch.ones(300, dtype=torch.float16)
    assert stored_scales(scale).dtype == torch.uint8
    scale[7] = odd
    assert stored_scales(scale) is scale
    assert stored_scales(scale.float().fill_(1.0)).dtype == torch.float32


def test_scales_far_apart_are_not_coded() -> None:
    # 127 eighths above the one in the middle.
    scale = torch.full((300,), 2.0**-14)
    scale[0] = 2.0 ** (2 - 1 / 8)
    assert stored_scales(round_scales(scale).half()).dtype == torch.float16


def test_they_take_about_their_entropy() -> None:
    numbers = np.random.default_rng(0).normal(0, 4, 20_000).round()
    data = encode_scales(np.exp2(numbers / 8).astype(np.float16))
    if data is None:
        data = encode_scales(
            round_scales(torch.from_numpy(np.exp2(numbers / 8)).float()).half().numpy()
        )
    assert data is not None
    shares = np.unique(numbers, return_counts=True)[1] / len(numbers)
    assert data.size < 1.03 * -(shares * np.log2(shares)).sum() * len(numbers) / 8 + 30


def test_other_bytes_are_an_error_or_other_scales() -> None:
    draw = np.random.default_rng(2)
    numbers = torch.from_numpy(draw.normal(0, 1, 60)).float()
    whole = encode_scales(round_scales(numbers.exp2()).half().numpy())
    assert whole is not None
    changed = [whole[:size] for size in range(len(whole))]
    for _ in range(500):
        changed.append(whole.copy())
        changed[-1][draw.integers(len(whole))] ^= 1 << draw.integers(8)
    for data in changed:
        with suppress(ValueError):
            scale = decode_scales(data, 60)
            assert scale.shape == (60,)
            assert np.isfinite(scale).all()
            assert (scale >= 0).all()
    with pytest.raises(ValueError, match="beyond float16"):
        decode_scales(np.concatenate([np.array([127], np.uint8), whole[1:]]), 60)
