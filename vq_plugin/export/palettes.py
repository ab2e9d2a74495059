"""Coded weights as palettes of Core ML: indices and tables of ``constexpr_lut_to_dense``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from vq_plugin.coding.bits import code_bits
from vq_plugin.nn import CodedWeight, View
from vq_plugin.schemes import Geometry, Scheme

# Bits of an index: coremltools 9 takes 3 bits, vectors and tables per group from iOS18 on only.
_BITS = {"iOS16": (1, 2, 4, 6, 8), "iOS17": (1, 2, 4, 6, 8), "iOS18": (1, 2, 3, 4, 6, 8)}
_NOT_HALF = "palettes hold float16; use codebook_dtype='float16'"


@dataclass(frozen=True)
class Palette:
    """What the operator reads.

    Attributes:
        indices: Places in the tables, of ``bits`` each.
        tables: Float16, one size for each of the indices', then centers and their length. A size
            above 1 is of tables for blocks of equal length.
        axis: The one along which the values of a center lie.
        bits: Of an index.
    """

    indices: NDArray[np.uint8]
    tables: NDArray[np.float16]
    axis: int
    bits: int


def palette(coded: CodedWeight, view: View, target: str) -> Palette:
    """A coded weight as a palette, with exactly its values.

    ``ValueError`` says what a deployment target does not take, and which scheme it does.
    """
    small, cut = coded.codebook_weight, coded.geometry
    shape, k = cut.shape, small.k
    if not view.plain:
        raise ValueError("its module reads the weight in another order than it is coded in")
    if coded._padding is not None and coded._zero_row:
        raise ValueError("palettes have no row of zeros for padding; leave it float")
    check_cut(cut, target)
    centers = small.codebooks[0]
    if not torch.equal(centers.half().to(centers.dtype), centers):
        raise ValueError(_NOT_HALF)
    bits = next(each for each in _BITS[target] if each >= max(code_bits(k), 1))
    codes, axis = _indices(coded)
    # Tables: groups of rows, books along the axis, one for all else; then centers.
    sizes = [1] * len(shape)
    side = 1 if cut.axis == "out" else 0
    tables = centers.half().numpy()
    if cut.groups > 1:
        # One length for all groups, which the last and shorter one, too, is a multiple of.
        assert cut.group is not None
        length = math.gcd(cut.group, cut.rows)
        owners = np.arange(0, cut.rows, length) // cut.group
        tables = tables[owners]
        sizes[side] = len(owners)
    if cut.books > 1:
        sizes[axis] = cut.books
    if side == 1:
        tables = tables.swapaxes(0, 1)
    padding = ((0, 0), (0, 0), (0, (1 << bits) - k), (0, 0))
    # Centers that no index leads to.
    tables = np.pad(tables, padding).reshape(*sizes, 1 << bits, cut.dim)
    return Palette(np.ascontiguousarray(codes), np.ascontiguousarray(tables), axis, bits)


def check_cut(cut: Geometry, target: str) -> None:
    """``ValueError`` if no weight that is cut so can be a palette, whatever its values."""
    out, inputs, *kernel = cut.shape
    if cut.stages > 1:
        raise ValueError(f"palettes have one table, not {cut.stages} that are added; use KM or PQ")
    if cut.scaled:
        raise ValueError("palettes have no row scales; use scale=None")
    if cut.k > 256:
        raise ValueError(f"palettes have 256 centers at most, not {cut.k}; use k=256")
    if target != "iOS18" and (cut.dim > 1 or cut.groups > 1 or cut.books > 1):
        raise ValueError(
            f"{target} has palettes of single values with one table; use KM without a group, or "
            "target='iOS18'"
        )
    if cut.axis == "out":
        if cut.groups > 1 and kernel:
            raise ValueError("palettes have no groups of kernel positions; use axis='in'")
        _must_divide(cut.dim, out, "outputs")
    elif cut.axis == "channels":
        _must_divide(cut.dim, inputs, "channels")
    elif math.prod(kernel) > 1 and cut.dim > 1:
        raise ValueError(
            "palettes have no centers across kernel positions; use layout='channels' or axis='out'"
        )
    elif cut.dim == 1 and cut.books > 1:
        raise ValueError("palettes have no table for each kernel position; use KM")
    else:
        _must_divide(cut.dim, inputs, "inputs")


def refusal(scheme: Scheme, shape: tuple[int, ...], target: str) -> str | None:
    """Why a weight of this shape and scheme is no palette, as far as that is known before a fit."""
    try:
        check_cut(scheme.geometry(shape), target)
    except ValueError as error:
        return str(error)
    return _NOT_HALF if scheme.codebook_dtype not in ("float16", "int8") else None


def _indices(coded: CodedWeight) -> tuple[NDArray[Any], int]:
    """Codes in the order of the weight, and the axis along which centers lie."""
    cut = coded.geometry
    out, inputs, *kernel = cut.shape
    codes = coded.codes[0].numpy().astype(np.uint8)
    if cut.axis == "out":
        return codes.T.reshape(out // cut.dim, inputs, *kernel), 0
    if cut.axis == "channels":
        by_position = codes.reshape(out, *kernel, inputs // cut.dim)
        return np.moveaxis(by_position, -1, 1), 1
    return codes.reshape(out, inputs // cut.dim, *kernel), 1


def _must_divide(dim: int, size: int, what: str) -> None:
    if size % dim:
        divisors = [each for each in range(1, dim) if size % each == 0]
        raise ValueError(
            f"centers of {dim} values do not divide {size} {what}; use dim={divisors[-1]}"
        )
