"""Bit packing: exact, gapless, and strict when it reads."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin.checkpoint import packing
from vq_plugin.checkpoint.packing import pack, packed_size, unpack
from vq_plugin.schemes import code_dtype

CENTERS = st.one_of(
    st.integers(1, 70_000), st.integers(0, 16).map(lambda b: 1 << b), st.integers(1, 20)
)


def codes_for(k: int, count: int, seed: int = 0) -> torch.Tensor:
    codes = torch.from_numpy(np.random.default_rng(seed).integers(0, k, count))
    if count:
        codes[-1] = k - 1
    return codes.to(code_dtype(k))


@given(CENTERS, st.integers(0, 300), st.integers(0, 100))
def test_codes_come_back(k: int, count: int, seed: int) -> None:
    codes = codes_for(k, count, seed)
    packed = pack(codes, k)
    bits = 0 if k == 1 else len(bin(k - 1)) - 2
    assert packed.dtype == torch.uint8
    assert packed.shape == (packed_size(count, k),) == ((count * bits + 7) // 8,)
    again = unpack(packed, count, k)
    assert again.dtype == codes.dtype
    assert torch.equal(again, codes)


@given(CENTERS.filter(lambda k: k > 1), st.integers(1, 40))
def test_bits_follow_each_other_lowest_first(k: int, count: int) -> None:
    codes = codes_for(k, count)
    bits = len(bin(k - 1)) - 2
    stream = sum(code << (bits * i) for i, code in enumerate(codes.tolist()))
    size = (count * bits + 7) // 8
    assert bytes(pack(codes, k).tolist()) == stream.to_bytes(size, "little")


def test_shape_and_layout_do_not_matter() -> None:
    codes = codes_for(9, 24).reshape(2, 3, 4)
    assert torch.equal(pack(codes, 9), pack(codes.flatten(), 9))
    strided = codes.transpose(0, 2)
    assert torch.equal(pack(strided, 9), pack(strided.contiguous(), 9))


@pytest.mark.parametrize("k", [1, 2, 5, 200, 256, 3000, 70_000])
def test_long_runs_are_cut_without_a_seam(k: int, monkeypatch: pytest.MonkeyPatch) -> None:
    codes = codes_for(k, 1003)
    whole = pack(codes, k)
    monkeypatch.setattr(packing, "_RUN", 64)
    assert torch.equal(pack(codes, k), whole)
    assert torch.equal(unpack(whole, 1003, k), codes)


@pytest.mark.parametrize(("size", "count"), [(2, 8), (4, 8), (0, 1), (3, 9)])
def test_another_size_is_an_error(size: int, count: int) -> None:
    with pytest.raises(ValueError, match=f"{size} bytes cannot hold {count} codes of 3 bits"):
        unpack(torch.zeros(size, dtype=torch.uint8), count, 8)


def test_codes_beyond_the_codebook_are_an_error() -> None:
    with pytest.raises(ValueError, match="code 7 is outside the codebook of 5 centers"):
        unpack(pack(torch.tensor([1, 7, 2]), 8), 3, 5)
