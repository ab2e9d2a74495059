"""Row scales that are powers of the eighth root of two: whole numbers, most of them near another.

Steps as long as a row wants are known to a few percent: a finer scale tells nothing.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding.numbers import decode_numbers, encode_numbers

#: 2^(j / 8) for j = 0, ..., 7 in 1024ths, rounded: what float16 has of it.
EIGHTHS = (1024, 1117, 1218, 1328, 1448, 1579, 1722, 1878)
#: Of the least and the largest power of two that all of float16's normal numbers lie between.
LEAST_OCTAVE, MOST_OCTAVE = -14, 15

# A row of zeros; other numbers are at most so far from the one in the middle.
_DEAD, _FARTHEST = -127, 126
# Equal scales take no bits: so many that files of strangers are not to stand for far more.
_ROWS_FOR_EACH_BYTE = 64
# Bits of float16 behind its exponent, and what its exponent has more.
_BITS, _BIAS = 10, 15


def encode_scales(scale: NDArray[np.float16]) -> NDArray[np.uint8] | None:
    """Row scales, ``(rows,)``, as bytes; nothing where they are others, or it is not smaller.

    A number ``n`` stands for ``2^(n / 8)``. The first byte is the number in the middle, int8; the
    differences to it follow as :func:`encode_numbers` has them, -127 for a scale of 0.

    No byte stands for more than 64 rows.

    Example:
        >>> scale = np.array([1.0, 1.0908, 0.5, 0.0] * 32, np.float16)
        >>> data = encode_scales(scale)
        >>> data.size, bool((decode_scales(data, 128) == scale).all())
        (88, True)
        >>> encode_scales(scale + np.float16(0.1))
    """
    raw = scale.view(np.uint16).astype(np.int32)
    dead = raw == 0
    octave, place = (raw >> _BITS) - _BIAS, raw & ((1 << _BITS) - 1)
    eighth = np.searchsorted(_places(), place)
    eighth[eighth == len(EIGHTHS)] = 0
    exact = (_places()[eighth] == place) & (octave >= LEAST_OCTAVE) & (octave <= MOST_OCTAVE)
    if not (exact | dead).all():
        return None
    numbers = 8 * octave + eighth
    live = np.sort(numbers[~dead])
    middle = int(live[len(live) // 2]) if live.size else 0
    off = np.where(dead, _DEAD, numbers - middle)
    if not ((off >= -_FARTHEST) & (off <= _FARTHEST) | dead).all():
        return None
    first = np.array([middle], np.int8).view(np.uint8)
    data = np.concatenate([first, encode_numbers(off.astype(np.int8))])
    return data if scale.size // _ROWS_FOR_EACH_BYTE < data.size < scale.nbytes else None


def decode_scales(data: NDArray[np.uint8], rows: int) -> NDArray[np.float16]:
    """Undoes :func:`encode_scales`; ``ValueError`` if there is no such stream."""
    if rows // _ROWS_FOR_EACH_BYTE >= data.size:
        raise ValueError(f"{data.size} bytes are no scales of {rows} rows")
    off = decode_numbers(data[1:], rows).view(np.uint8)
    # One number after the other, -127 last: there are few.
    numbers = int(data[:1].view(np.int8)[0]) + np.arange(256, dtype=np.uint8).view(np.int8).astype(
        np.int32
    )
    octave, eighth = numbers >> 3, numbers & 7
    beyond = (octave < LEAST_OCTAVE) | (octave > MOST_OCTAVE)
    raw = np.where(beyond, 0, (octave + _BIAS << _BITS) + _places()[eighth]).astype(np.uint16)
    dead = _DEAD % 256
    raw[dead], beyond[dead] = 0, False
    if beyond[off].any():
        raise ValueError("a row scale is beyond float16")
    found: NDArray[np.float16] = raw[off].view(np.float16)
    return found


def _places() -> NDArray[Any]:
    """What float16 has of the powers behind its exponent."""
    return np.array(EIGHTHS, np.int32) - (1 << _BITS)
