"""Operators of the fits: k-means on the CPU, each call on one thread.

All have native kernels only; :func:`native_fits` says whether they are there. They check shapes,
dtypes and codes, and raise ``RuntimeError``.
"""

from __future__ import annotations

from typing import Any

import torch
from torch.library import Library

from vq_plugin.ops.native import native

# Codes are bytes.
MOST_CENTERS = 256
# Cells of one value of the upper 16 bits of a float: see `scalar_cells`.
CELL_BINS = 1 << 16

_library = Library("vq", "FRAGMENT")  # type: ignore[no-untyped-call]
# Points x and their importance are float32, (books, n, dim), of any strides; codes are uint8,
# (books, n), centers float32, (books, k, dim). The headers csrc/fit*.h say what each computes.
for _schema in (
    # Codes and weighted squared distances, float32, (books, n).
    "nearest_centers(Tensor x, Tensor? importance, Tensor centers) -> (Tensor, Tensor)",
    # Float64 sums, (books, k, dim), and masses alike, or counts, (books, k, 1).
    "sums_by_code(Tensor x, Tensor? importance, Tensor codes, int k) -> (Tensor, Tensor)",
    # Centers and codes.
    "lloyd(Tensor x, Tensor? importance, Tensor centers, int iterations, float tolerance) "
    "-> (Tensor, Tensor)",
    # Centers, and how many are distinct, int64, (books,): the last one repeats. Mass is float32,
    # (books, n); first, (books, 1), and draws, (k - 1, books, trials), float64 in [0, 1).
    "seed_centers(Tensor x, Tensor mass, Tensor first, Tensor draws) -> (Tensor, Tensor)",
    "exchange_codes(Tensor x, Tensor? importance, Tensor codes, int k, int sweeps) -> Tensor",
    # Codes, (groups, stages, steps, points), and base less the centers chosen. Point p of group g
    # has book step * per_step + (first + g * of_group + p) // rows.
    "sweep_block(Tensor inner, Tensor pull, Tensor base, Tensor inverse, Tensor? factor, "
    "Tensor centers, Tensor scored, Tensor? before, Tensor? kept, bool along_out, int padding, "
    "int per_step, int first, int of_group, int rows) -> (Tensor, Tensor)",
    # Mass, and mass times value, of every cell, float64, (cells, 2). Offset is the first cell of
    # every bin, int32, and 2^(16 - shift) their number, uint8, both (CELL_BINS,).
    "scalar_cells(Tensor values, Tensor? importance, Tensor offset, Tensor shift) -> Tensor",
    # How many of at most 255 ascending boundaries are below each value.
    "scalar_codes(Tensor values, Tensor boundaries) -> Tensor",
    # First points of the k best intervals, int64; running sums are float64, (m + 1,).
    "optimal_intervals(Tensor mass, Tensor moment, int k) -> Tensor",
    # Ascending float64 centers of the optimum for float32 values that count alike, (k,), or (m,)
    # where only m are distinct.
    "few_centers(Tensor values, int k) -> Tensor",
    # Patches of a float32 input, (samples, channels, *sizes), of any strides, at some of
    # (samples, *places), int64: (channels * positions, count).
    "patch_rows(Tensor value, Tensor index, int[] kernel, int[] stride, int[] before, "
    "int[] dilation, int[] places) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def native_fits() -> bool:
    """Whether the operators of this module can be called."""
    return native() is not None


def operators() -> Any:
    """The operators, with their kernels loaded.

    Example:
        >>> if native_fits():
        ...     x, centers = torch.tensor([[[0.0], [0.9], [5.0]]]), torch.tensor([[[1.0], [4.0]]])
        ...     codes, distance = operators().nearest_centers(x, None, centers)
        ...     assert codes.tolist() == [[0, 0, 1]]
    """
    native()
    return torch.ops.vq
