"""How often codes are there, as a file keeps it: in proportion, or by the logarithm.

Most of many codes are rare: a count that holds the largest of them and tells the rare ones apart
takes 12 bits. Shares are needed to some percent, and then 5 bits of a logarithm do.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

#: What headers have as the width of counts that are logarithms of 4, 5 and 6 bits.
LOGARITHMS = (20, 21, 22)

_MOST_BITS, _LOGARITHM = 16, 16
# 2^(j / 4) in 1024ths, rounded.
_QUARTERS = (1024, 1218, 1448, 1722)


def is_width(bits: int) -> bool:
    """Whether a header may say so of counts."""
    return 0 < bits <= _MOST_BITS or bits in LOGARITHMS


def width_of(bits: int) -> int:
    """Bits that a count takes."""
    return bits - _LOGARITHM if bits in LOGARITHMS else bits


def quantized_counts(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """Counts as readers have them, by the largest of their table; above 0 where there is a code.

    Args:
        counts: How often each code is there, ``(tables, k)``.
        bits: As a header has it.

    Example:
        >>> counts = np.array([[1000, 30, 1, 0]])
        >>> quantized_counts(counts, 4).tolist(), quantized_counts(counts, 20).tolist()
        ([[15, 1, 1, 0]], [[16777216, 524288, 16384, 0]])
    """
    most = np.maximum(counts.max(1, keepdims=True), 1)
    if bits in LOGARITHMS:
        values = _values(bits)[1:].astype(np.float64)
        bounds = np.sqrt(values[1:] * values[:-1])
        found = np.searchsorted(bounds, counts / most * values[-1], side="right") + 1
        logarithms: NDArray[np.int64] = _values(bits)[np.where(counts > 0, found, 0)]
        return logarithms
    scaled = (counts * (2 * ((1 << bits) - 1)) + most) // (2 * most)
    tables: NDArray[np.int64] = np.maximum(scaled, counts > 0)
    return tables


def as_stored(counts: NDArray[np.int64], bits: int) -> NDArray[np.int64]:
    """What a file keeps of :func:`quantized_counts`."""
    return np.searchsorted(_values(bits), counts) if bits in LOGARITHMS else counts


def from_stored(numbers: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Undoes :func:`as_stored`."""
    found: NDArray[np.int64] = numbers.astype(np.int64)
    return _values(bits)[found] if bits in LOGARITHMS else found


def _values(bits: int) -> NDArray[np.int64]:
    """What logarithms stand for: 0, and then twice as much with every 1, 2 or 4 of them."""
    width = width_of(bits)
    per_octave = 1 << width - 4
    at = np.arange((1 << width) - 1)
    quarters = np.array(_QUARTERS)[at % per_octave * (4 // per_octave)]
    return np.concatenate([[0], quarters << at // per_octave])
