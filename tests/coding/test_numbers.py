"""Whole numbers by the frequencies of their lengths: exact, near their entropy, safe to read."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin.coding import ans, plain
from vq_plugin.coding.numbers import decode_numbers, encode_numbers


@given(st.lists(st.integers(-127, 127), max_size=300))
def test_all_numbers_come_back(values: list[int]) -> None:
    data = encode_numbers(np.array(values, np.int8))
    assert decode_numbers(data, len(values)).tolist() == values


@pytest.mark.parametrize("size", [1.0, 8.0, 40.0])
@pytest.mark.parametrize("zeros", [0.0, 0.7])
def test_their_bytes_are_near_the_entropy_of_their_lengths(size: float, zeros: float) -> None:
    draw = np.random.default_rng(0)
    values = draw.laplace(0, size, 20_000).round().clip(-127, 127).astype(np.int8)
    values[draw.random(len(values)) < zeros] = 0
    lengths = np.array([int(abs(int(v))).bit_length() * (1 if v > 0 else -1) for v in values])
    shares = np.unique(lengths, return_counts=True)[1] / len(values)
    bits = -(shares * np.log2(shares)).sum() * len(values)
    bits += np.maximum(np.abs(lengths) - 1, 0).sum()
    assert bits / 8 < encode_numbers(values).size < 1.02 * bits / 8 + 20


def test_both_coders_give_the_same_bytes(monkeypatch: pytest.MonkeyPatch) -> None:
    values = np.random.default_rng(1).integers(-127, 128, 500).astype(np.int8)
    expected = encode_numbers(values).tobytes()
    monkeypatch.setattr(ans, "coder", lambda: plain)
    assert encode_numbers(values).tobytes() == expected
    assert (decode_numbers(np.frombuffer(expected, np.uint8), 500) == values).all()


def test_other_bytes_are_an_error_or_other_numbers() -> None:
    draw = np.random.default_rng(2)
    whole = encode_numbers(draw.integers(-9, 10, 60).astype(np.int8))
    changed = [whole[:size] for size in range(len(whole))]
    for _ in range(300):
        changed.append(whole.copy())
        changed[-1][draw.integers(len(whole))] ^= 1 << draw.integers(8)
    for data in changed:
        with suppress(ValueError):
            assert decode_numbers(data, 60).shape == (60,)
    for size in range(15):
        with pytest.raises(ValueError, match="are no numbers"):
            decode_numbers(whole[:size], 60)
    with pytest.raises(ValueError, match="goes on"):
        decode_numbers(whole, 30)
