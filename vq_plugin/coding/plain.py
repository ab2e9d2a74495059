"""What the extension does with bits and streams, in Python and numpy: the same bytes, slowly.

The functions have the names and arguments of the extension's, so that either can serve. A stream's
next symbol depends on all before it, which leaves numpy nothing to do at once: a core takes about
two million symbols a second.
"""

from __future__ import annotations

from bisect import bisect_right
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Frequencies of one table sum to 2^24.
PRECISION = 24
_WORD = 32
_LOW, _MASK = (1 << PRECISION) - 1, (1 << _WORD) - 1
# Whole bytes at every width; the bits of one run take 1 MB per bit of a code.
_RUN = 1 << 20


def pack_bits(codes: NDArray[Any], bits: int, packed: NDArray[np.uint8]) -> None:
    """Writes codes one after the other, the lowest bit first, without gaps."""
    for start in range(0, len(codes), _RUN):
        run = codes[start : start + _RUN].astype(np.int32)
        each = (run[:, None] >> np.arange(bits)).astype(np.uint8) & 1
        data = np.packbits(each, bitorder="little")
        first = start * bits // 8
        packed[first : first + len(data)] = data


def unpack_bits(packed: NDArray[np.uint8], bits: int, codes: NDArray[Any]) -> None:
    """The way back."""
    weights = 1 << np.arange(bits)
    for start in range(0, len(codes), _RUN):
        run = codes[start : start + _RUN]
        raw = np.unpackbits(
            packed[start * bits // 8 :], count=len(run) * bits, bitorder="little"
        ).reshape(-1, bits)
        run[:] = raw.astype(np.int32) @ weights


def ans_push(
    frequencies: NDArray[np.uint32], symbols: NDArray[Any], words: NDArray[np.uint32], state: int
) -> tuple[int, int]:
    """Puts symbols on a stream, the last one first; gives its state and how many words it wrote."""
    starts = _starts(frequencies)
    if symbols.size and int(symbols.max()) >= len(frequencies):
        raise ValueError("a symbol has no frequency")
    backwards, written = symbols[::-1], []
    for frequency, start in zip(
        frequencies[backwards].tolist(), starts[backwards].tolist(), strict=True
    ):
        if state >> (2 * _WORD - PRECISION) >= frequency:
            written.append(state & _MASK)
            state >>= _WORD
        quotient, rest = divmod(state, frequency)
        state = (quotient << PRECISION) + rest + start
    words[: len(written)] = written
    return state, len(written)


def ans_pop(
    frequencies: NDArray[np.uint32],
    words: NDArray[np.uint32],
    state: int,
    left: int,
    symbols: NDArray[Any],
) -> tuple[int, int]:
    """Takes symbols off a stream; gives its state and how many words are left."""
    starts, shares = _starts(frequencies).tolist(), frequencies.tolist()
    # No symbol takes more than one word.
    stack = words[max(0, left - len(symbols)) : left].tolist()
    below, found = left - len(stack), []
    for _ in range(len(symbols)):
        low = state & _LOW
        symbol = bisect_right(starts, low) - 1
        found.append(symbol)
        state = (state >> PRECISION) * shares[symbol] + low - starts[symbol]
        if state <= _MASK and stack:
            state = state << _WORD | stack.pop()
    symbols[:] = found
    return state, below + len(stack)


def _starts(frequencies: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Sums of the frequencies before each."""
    ends = frequencies.astype(np.int64).cumsum()
    whole = len(ends) > 1 and ends[-1] == 1 << PRECISION
    if not (whole and frequencies.all()):
        raise ValueError("these are no frequencies")
    return ends - frequencies.astype(np.int64)
