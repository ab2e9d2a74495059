"""Small integers of both signs as an ANS stream: lengths in bits by their frequencies, then bits.

Biases that are whole numbers of steps have no table of their values that would pay: a few hundred
numbers, most of them different, many of them 0.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding.ans import Reader, Writer
from vq_plugin.coding.bits import pack, packed_size, unpack
from vq_plugin.coding.counts import quantized_counts
from vq_plugin.coding.entropy import frequencies
from vq_plugin.coding.plain import PRECISION

# Up to 127, of both signs, and 0; and bits of each count.
LENGTHS, _COUNT_BITS = 7, 8
KINDS = 2 * LENGTHS + 1
_TABLE = packed_size(KINDS, 1 << _COUNT_BITS)


def number_kinds(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """The kind of 0 is 0, of a number of ``b`` bits ``2 b - 1``, and ``2 b`` where it is negative.

    What follows the kind takes ``b - 1`` bits.

    Example:
        >>> number_kinds(np.array([0, 1, -1, 3, -100], np.int8)).tolist()
        [0, 1, 2, 3, 14]
    """
    lengths = np.frexp(np.abs(values.astype(np.float32)))[1]
    return np.where(lengths > 0, 2 * lengths - (values > 0), 0).astype(np.uint8)


def encode_numbers(values: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Integers from -127 to 127, ``(n,)``, as bytes: counts of their kinds, then the stream.

    Example:
        >>> values = np.array([0, 3, -100, 0, 0, 1] * 50, np.int8)
        >>> data = encode_numbers(values)
        >>> data.size, bool((decode_numbers(data, 300) == values).all())
        (131, True)
    """
    sizes = np.abs(values.astype(np.int16))
    kinds = number_kinds(values)
    table = quantized_counts(np.bincount(kinds, minlength=KINDS)[None], _COUNT_BITS)[0]
    writer, lengths = Writer(), _lengths(kinds)
    for length in range(LENGTHS, 1, -1):
        below = sizes[lengths == length] - (1 << length - 1)
        writer.push(below.astype(np.uint8), _even(length))
    if kinds.size:
        writer.push(kinds, frequencies(table).astype(np.uint32))
    stream = writer.words().astype("<u4").view(np.uint8)
    return np.concatenate([pack(table, 1 << _COUNT_BITS), stream])


def decode_numbers(data: NDArray[np.uint8], count: int) -> NDArray[np.int8]:
    """Undoes :func:`encode_numbers`; ``ValueError`` if there is no such stream.

    The caller makes sure that so many are wanted: a short stream can stand for any number of zeros.
    """
    if data.size < _TABLE or (data.size - _TABLE) % 4:
        raise ValueError(f"{data.size} bytes are no numbers")
    table = unpack(data[:_TABLE], KINDS, 1 << _COUNT_BITS).astype(np.int64)
    reader = Reader(np.frombuffer(data[_TABLE:].tobytes(), "<u4").astype(np.uint32))
    kinds = np.zeros(count, np.uint8)
    if count:
        if not table.any():
            raise ValueError("the table has no count for its numbers")
        reader.pop(kinds, frequencies(table).astype(np.uint32))
    lengths = _lengths(kinds)
    sizes = (lengths > 0).astype(np.uint8)
    for length in range(2, LENGTHS + 1):
        there = lengths == length
        below = np.zeros(int(there.sum()), np.uint8)
        reader.pop(below, _even(length))
        sizes[there] = below + (1 << length - 1)
    if not reader.finished:
        raise ValueError("the stream goes on after the last number")
    negative = (kinds > 0) & (kinds % 2 == 0)
    found: NDArray[np.int8] = np.where(negative, -sizes.astype(np.int8), sizes).astype(np.int8)
    return found


def _lengths(kinds: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Bits of the sizes of numbers of these kinds."""
    return (kinds + 1) // 2


def _even(length: int) -> NDArray[Any]:
    """Frequencies of what follows the first bit of a number."""
    return np.full(1 << length - 1, 1 << PRECISION - length + 1, np.uint32)
