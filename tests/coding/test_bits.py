"""Bit packing: exact, gapless, and strict when it reads."""

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from tests.coding.test_ans import both, using
from vq_plugin.coding.bits import code_dtype, pack, packed_size, unpack

CENTERS = st.one_of(
    st.integers(1, 70_000), st.integers(0, 16).map(lambda b: 1 << b), st.integers(1, 20)
)


def codes_for(k: int, count: int, seed: int = 0) -> NDArray[Any]:
    codes = np.random.default_rng(seed).integers(0, k, count)
    if count:
        codes[-1] = k - 1
    return codes.astype(code_dtype(k))


@both
@given(k=CENTERS, count=st.integers(0, 300), seed=st.integers(0, 100))
def test_codes_come_back(native: bool, k: int, count: int, seed: int) -> None:
    codes = codes_for(k, count, seed)
    with using(native):
        packed = pack(codes, k)
        again = unpack(packed, count, k)
    bits = 0 if k == 1 else len(bin(k - 1)) - 2
    assert packed.dtype == np.uint8
    assert packed.shape == (packed_size(count, k),) == ((count * bits + 7) // 8,)
    assert again.dtype == codes.dtype
    assert np.array_equal(again, codes)


@both
@given(k=CENTERS.filter(lambda k: k > 1), count=st.integers(1, 40))
def test_bits_follow_each_other_lowest_first(native: bool, k: int, count: int) -> None:
    codes = codes_for(k, count)
    bits = len(bin(k - 1)) - 2
    stream = sum(code << (bits * i) for i, code in enumerate(codes.tolist()))
    size = (count * bits + 7) // 8
    with using(native):
        assert pack(codes, k).tobytes() == stream.to_bytes(size, "little")


def test_shape_and_layout_do_not_matter() -> None:
    codes = codes_for(9, 24).reshape(2, 3, 4)
    assert np.array_equal(pack(codes, 9), pack(codes.reshape(-1), 9))
    strided = codes.transpose(2, 1, 0)
    assert np.array_equal(pack(strided, 9), pack(strided.copy(), 9))


@pytest.mark.parametrize("k", [1, 2, 5, 200, 256, 3000, 70_000])
def test_long_runs_are_cut_without_a_seam(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_for(k, 1003)
    with using(native=False):
        whole = pack(codes, k)
        monkeypatch.setattr("vq_plugin.coding.plain._RUN", 64)
        assert np.array_equal(pack(codes, k), whole)
        assert np.array_equal(unpack(whole, 1003, k), codes)


@pytest.mark.parametrize(("size", "count"), [(2, 8), (4, 8), (0, 1), (3, 9)])
def test_another_size_is_an_error(size: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes cannot hold {count} codes of 3 bits"):
        unpack(np.zeros(size, np.uint8), count, 8)


def test_codes_beyond_the_codebook_are_an_error() -> None:
    with pytest.raises(ValueError, match="code 7 is outside the codebook of 5 centers"):
        unpack(pack(np.array([1, 7, 2]), 8), 3, 5)
