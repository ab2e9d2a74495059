"""Operators of the fits: k-means on the CPU, each call on one thread.

All have native kernels only; :func:`native_fits` says whether they are there. They check shapes,
dtypes and codes, and raise ``RuntimeError``.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.library import Library

from vq_plugin.ops.native import native

# Codes are bytes.
MOST_CENTERS = 256
# Cells of one value of the upper 16 bits of a float: see `scalar_cells`.
CELL_BINS = 1 << 16

_library = Library("vq", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    "nearest_centers(Tensor x, Tensor? importance, Tensor centers) -> (Tensor, Tensor)",
    "sums_by_code(Tensor x, Tensor? importance, Tensor codes, int k) -> (Tensor, Tensor)",
    "lloyd(Tensor x, Tensor? importance, Tensor centers, int iterations, float tolerance) "
    "-> (Tensor, Tensor)",
    "seed_centers(Tensor x, Tensor mass, Tensor first, Tensor draws) -> (Tensor, Tensor)",
    "exchange_codes(Tensor x, Tensor? importance, Tensor codes, int k, int sweeps) -> Tensor",
    "sweep_block(Tensor inner, Tensor pull, Tensor base, Tensor inverse, Tensor? factor, "
    "Tensor centers, Tensor scored, Tensor? before, Tensor? kept, bool along_out, int padding, "
    "int per_step, int first, int of_group, int rows) -> (Tensor, Tensor)",
    "scalar_cells(Tensor values, Tensor? importance, Tensor offset, Tensor shift) -> Tensor",
    "scalar_codes(Tensor values, Tensor boundaries) -> Tensor",
    "optimal_intervals(Tensor mass, Tensor moment, int k) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def native_fits() -> bool:
    """Whether the operators of this module can be called."""
    return native() is not None


def _operators() -> Any:
    native()
    return torch.ops.vq


def nearest_centers(x: Tensor, importance: Tensor | None, centers: Tensor) -> tuple[Tensor, Tensor]:
    """The nearest center of every point.

    Args:
        x: Float32, ``(books, n, dim)``, of any strides.
        importance: Float32 of the same shape, positive, or ``None``.
        centers: Float32, ``(books, k, dim)``, k at most 256.

    Returns:
        Codes, uint8, and weighted squared distances, float32, both ``(books, n)``.

    Example:
        >>> x = torch.tensor([[[0.0], [0.9], [5.0]]])
        >>> centers = torch.tensor([[[1.0], [4.0]]])
        >>> if native_fits():
        ...     codes, distance = nearest_centers(x, None, centers)
        ...     assert codes.tolist() == [[0, 0, 1]]
    """
    codes, distance = _operators().nearest_centers(x, importance, centers.contiguous())
    return codes, distance


def sums_by_code(
    x: Tensor, importance: Tensor | None, codes: Tensor, k: int
) -> tuple[Tensor, Tensor]:
    """Weighted sums of the points of every code, and their masses.

    Args:
        x: As :func:`nearest_centers`.
        importance: As :func:`nearest_centers`.
        codes: Uint8, ``(books, n)``, below ``k``.
        k: Centers per book.

    Returns:
        Sums, float64, ``(books, k, dim)``, and masses of the same shape, or counts,
        ``(books, k, 1)``, without importance.

    Example:
        >>> x = torch.tensor([[[1.0], [2.0], [4.0]]])
        >>> codes = torch.tensor([[0, 0, 1]], dtype=torch.uint8)
        >>> if native_fits():
        ...     sums, mass = sums_by_code(x, None, codes, 2)
        ...     assert sums.tolist() == [[[3.0], [4.0]]] and mass.tolist() == [[[2.0], [1.0]]]
    """
    sums, mass = _operators().sums_by_code(x, importance, codes.contiguous(), k)
    return sums, mass


def lloyd(
    x: Tensor, importance: Tensor | None, centers: Tensor, *, iterations: int, tolerance: float
) -> tuple[Tensor, Tensor]:
    """Lloyd's iterations in every book until its error falls by less than the tolerance.

    Args:
        x: As :func:`nearest_centers`.
        importance: As :func:`nearest_centers`.
        centers: Where to start; as :func:`nearest_centers`.
        iterations: Most iterations.
        tolerance: Part of the error.

    Returns:
        Centers, of which none is empty where a point lies apart from its center, and the codes of
        their points, uint8, ``(books, n)``.

    Example:
        >>> x = torch.tensor([[[0.0], [1.0], [4.0], [5.0]]])
        >>> start = torch.tensor([[[0.0], [1.0]]])
        >>> if native_fits():
        ...     centers, codes = lloyd(x, None, start, iterations=20, tolerance=1e-4)
        ...     assert centers.tolist() == [[[0.5], [4.5]]]
    """
    found, codes = _operators().lloyd(x, importance, centers.contiguous(), iterations, tolerance)
    return found, codes


def seed_centers(x: Tensor, mass: Tensor, first: Tensor, draws: Tensor) -> tuple[Tensor, Tensor]:
    """Greedy k-means++: every center is the best of some points drawn by squared distance.

    Args:
        x: As :func:`nearest_centers`, ``n >= 1``.
        mass: Float32, ``(books, n)``, not negative.
        first: Float64 in [0, 1), ``(books, 1)``: draws the first center.
        draws: Float64 in [0, 1), ``(k - 1, books, trials)``: the candidates for the others.

    Returns:
        Centers, ``(books, k, dim)``, and how many of them are distinct, int64, ``(books,)``: the
        last one repeats where a book has fewer distinct points.

    Example:
        >>> x = torch.tensor([[[0.0], [1.0]]])
        >>> first = torch.zeros(1, 1, dtype=torch.float64)
        >>> draws = torch.full((1, 1, 2), 0.5, dtype=torch.float64)
        >>> if native_fits():
        ...     centers, found = seed_centers(x, torch.ones(1, 2), first, draws)
        ...     assert centers.tolist() == [[[0.0], [1.0]]] and found.tolist() == [2]
    """
    centers, found = _operators().seed_centers(x, mass, first, draws)
    return centers, found


def exchange_codes(
    x: Tensor, importance: Tensor | None, codes: Tensor, k: int, *, sweeps: int
) -> Tensor:
    """Hartigan's exchange, one point after the other.

    Args:
        x: As :func:`nearest_centers`.
        importance: As :func:`nearest_centers`.
        codes: Uint8, ``(books, n)``, below ``k``.
        k: Centers per book.
        sweeps: Most passes over the points.

    Returns:
        Codes of no larger error with respect to the means of their points.

    Example:
        >>> x = torch.tensor([[[0.0], [2.0], [3.1]]])
        >>> codes = torch.tensor([[0, 0, 1]], dtype=torch.uint8)
        >>> if native_fits():
        ...     assert exchange_codes(x, None, codes, 2, sweeps=4).tolist() == [[0, 1, 1]]
    """
    better: Tensor = _operators().exchange_codes(x, importance, codes.contiguous(), k, sweeps)
    return better


class Books(NamedTuple):
    """Which point of a sweep has which codebook.

    Point p of group g has book ``step · per_step + (first + g · of_group + p) // rows``.
    """

    per_step: int
    first: int
    of_group: int
    rows: int


def sweep_block(
    inner: Tensor,
    pull: Tensor,
    base: Tensor,
    inverse: Tensor,
    factor: Tensor | None,
    centers: Tensor,
    scored: Tensor,
    before: Tensor | None,
    kept: Tensor | None,
    books: Books,
    *,
    along_out: bool,
    padding: int,
) -> tuple[Tensor, Tensor]:
    """Some steps of :func:`vq_plugin.fit.sweep.sweep`: codes that make up for each other's error.

    A step takes ``dim`` inputs of every output, or one input and the outputs ``dim`` at a time;
    its ``size`` is ``dim`` or 1, and its points are the outputs, or a ``dim``-th of them.

    Args:
        inner: How the error of an input (row) counts at those after it, float32,
            ``(groups, inputs, inputs)``.
        pull: What the errors of other inputs ask of each, float32, ``(groups, inputs, outputs)``.
        base: What stands there now, of the same shape.
        inverse: Of the metric of every step, float32, ``(groups, steps, size, size)``.
        factor: Lower factors of the metrics, of the same shape; ``None`` where ``size`` is 1.
        centers: Float32, ``(stages, books, k, dim)``, k at most 256.
        scored: The centers times the factor, of the same shape, or one after the other for every
            group.
        before: With several stages, the codes so far, uint8, ``(groups, stages, steps, points)``.
        kept: Codes that have to be, -1 for a free choice, int32, ``(groups, steps, points)``.
        books: Whose centers a point takes.
        along_out: Whether sub-vectors run along the outputs.
        padding: Last outputs that do not count, along the outputs.

    Returns:
        Codes, uint8, ``(groups, stages, steps, points)``, and ``base`` less the centers chosen.

    Example:
        >>> inner = torch.tensor([[[1.0, 1.0], [0.0, 1.0]]])  # the second makes up for the first
        >>> base, ones = torch.tensor([[[0.4], [0.4]]]), torch.ones(1, 2, 1, 1)
        >>> centers = torch.tensor([0.0, 1.0]).reshape(1, 1, 2, 1)
        >>> if native_fits():
        ...     codes, change = sweep_block(
        ...         inner, torch.zeros(1, 2, 1), base, ones, None, centers, centers, None, None,
        ...         Books(0, 0, 0, 1), along_out=False, padding=0,
        ...     )  # fmt: skip
        ...     assert codes.flatten().tolist() == [0, 1]
    """
    codes, change = _operators().sweep_block(
        inner, pull, base, inverse, factor, centers, scored, before, kept,
        along_out, padding, *books,
    )  # fmt: skip
    return codes, change


def scalar_cells(
    values: Tensor, importance: Tensor | None, offset: Tensor, shift: Tensor
) -> Tensor:
    """Mass, and mass times value, of cells of a line.

    A float's upper 16 bits, in an order that ascends with the floats, choose a bin, and the bits
    below them one of the bin's ``2^(16 - shift)`` cells.

    Args:
        values: Float32, ``(n,)``.
        importance: Float32, ``(n,)``, or ``None``.
        offset: The first cell of every bin, int32, ``(CELL_BINS,)``.
        shift: Uint8, at most 16, ``(CELL_BINS,)``.

    Returns:
        Float64, ``(cells, 2)``.

    Example:
        >>> offset = torch.arange(CELL_BINS, dtype=torch.int32)
        >>> shift = torch.full((CELL_BINS,), 16, dtype=torch.uint8)
        >>> if native_fits():
        ...     cells = scalar_cells(torch.tensor([1.0, 1.0, -2.0]), None, offset, shift)
        ...     assert cells[cells[:, 0] > 0].tolist() == [[1.0, -2.0], [2.0, 2.0]]
    """
    cells: Tensor = _operators().scalar_cells(values.contiguous(), importance, offset, shift)
    return cells


def scalar_codes(values: Tensor, boundaries: Tensor) -> Tensor:
    """How many of the boundaries are below each value.

    Args:
        values: Float32, ``(n,)``.
        boundaries: Float32, ascending, at most 255.

    Returns:
        Uint8, ``(n,)``.

    Example:
        >>> if native_fits():
        ...     codes = scalar_codes(torch.tensor([0.0, 1.0, 2.0]), torch.tensor([0.5, 1.5]))
        ...     assert codes.tolist() == [0, 1, 2]
    """
    codes: Tensor = _operators().scalar_codes(values.contiguous(), boundaries)
    return codes


def optimal_intervals(mass: Tensor, moment: Tensor, k: int) -> Tensor:
    """The exact optimum of 1-D k-means: see :func:`vq_plugin.fit.optimal.optimal_starts`.

    Args:
        mass: Float64, ``(m + 1,)``, ascending.
        moment: Float64, ``(m + 1,)``.
        k: Intervals, 1 <= k <= m.

    Returns:
        First point of every interval, int64, ``(k,)``.

    Example:
        >>> mass = torch.tensor([0.0, 1.0, 2.0, 3.0], dtype=torch.float64)
        >>> moment = torch.tensor([0.0, 0.0, 1.0, 6.0], dtype=torch.float64)  # of 0, 1 and 5
        >>> if native_fits():
        ...     assert optimal_intervals(mass, moment, 2).tolist() == [0, 2]
    """
    starts: Tensor = _operators().optimal_intervals(mass, moment, k)
    return starts
