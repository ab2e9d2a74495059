"""The arrays of a file: its tensors, and the codes, centers and scales of its coded weights."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding import entropy
from vq_plugin.coding.bits import unpack
from vq_plugin.coding.scales import decode_scales
from vq_plugin.format.bounds import may_be_coded
from vq_plugin.format.container import Container
from vq_plugin.format.header import Entry, Stored, join

# Steps of int8 centers whose multiples float16 holds: from its smallest number, to where 127 of
# them reach its largest.
LEAST_EXPONENT, MOST_EXPONENT = -24, 9
MOST_STEPS = 127


def array_of(kind: Stored, data: NDArray[np.uint8]) -> NDArray[Any]:
    """A tensor of a file as numpy has it: bfloat16 becomes float32, rounded ones what they were.

    ``ValueError`` if numpy has no such dtype.
    """
    if kind.dtype == "bfloat16":
        array = (data.view("<u2").astype(np.uint32) << 16).view(np.float32)
    elif kind.dtype.startswith("float8"):
        raise ValueError(f"numpy has no {kind.dtype}; vq_plugin.open_file reads it with torch")
    else:
        array = data.view(np.dtype(kind.dtype).newbyteorder("<"))
    array = array.reshape(kind.shape)
    if kind.rounded is None:
        return array
    wide = array.astype(kind.rounded)
    return wide if kind.exponent is None else np.ldexp(wide, kind.exponent)


def read_codes(file: Container, name: str, entry: Entry) -> NDArray[Any]:
    """The codes of a stored weight, ``(stages, rows, subspaces)``, in the smallest integer dtype.

    The caller makes sure that a weight of this shape is wanted: a few bytes can stand for any
    number of codes. ``ValueError`` if they are more than it can have, or damaged.
    """
    k, count = file.header.books(name)[3], math.prod(entry.codes)
    # Packed codes of some bits are never more than the file is long.
    packed = entry.coding is None and k > 1
    if not packed and not may_be_coded(count, math.prod(entry.shape)):
        raise ValueError(f"codes of shape {entry.codes} do not fit a weight of {entry.shape}")
    data = file.raw(join(name, "codes"))
    if entry.coding is not None:
        return entropy.decode(data, entry.coding, entry.codes, k)
    return unpack(data, count, k).reshape(entry.codes)


def has_coded_scales(file: Container, name: str) -> bool:
    """Whether the row scales of a stored weight are bytes that stand for them."""
    kind = file.header.tensors.get(join(name, "scale"))
    return kind is not None and kind.dtype == "uint8"


def read_scales(file: Container, name: str, entry: Entry) -> NDArray[np.float16]:
    """The row scales of a stored weight, ``(rows,)``, where they are coded.

    ``ValueError`` if they are damaged.
    """
    return decode_scales(file.raw(join(name, "scale")), entry.matrix[0])


def from_int8(integers: NDArray[Any], exponents: NDArray[Any]) -> NDArray[np.float16]:
    """``integers · 2^exponents`` as float16, which holds them exactly.

    Integers are int8, ``(..., k, dim)``, in [-127, 127], and exponents of the steps are int8,
    ``(...)``, in [-24, 9]; ``ValueError`` otherwise.
    """
    if integers.dtype != np.int8 or exponents.dtype != np.int8:
        raise ValueError(f"int8 codebooks of {integers.dtype} with exponents of {exponents.dtype}")
    if exponents.shape != integers.shape[:-2]:
        raise ValueError(
            f"exponents of shape {exponents.shape} do not fit codebooks of shape {integers.shape}"
        )
    in_range = (exponents >= LEAST_EXPONENT) & (exponents <= MOST_EXPONENT)
    if not in_range.all() or (integers < -MOST_STEPS).any():
        raise ValueError("int8 codebooks or their exponents are out of range")
    steps = np.ldexp(np.float32(1), exponents.astype(np.int32))
    return (integers * steps[..., None, None]).astype(np.float16)
