"""K-means on single weights: 1-D, on sorted weighted points.

In one dimension clusters are intervals, so after one sort every sum over a cluster is the
difference of two prefix sums: a Lloyd iteration costs k searches instead of n·k distances.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from vq_plugin.schemes import code_dtype
from vq_plugin.fit.optimal import even_starts, optimal_starts
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.ops import fit as native

Float64 = npt.NDArray[np.float64]
Float32 = npt.NDArray[np.float32]
Int64 = npt.NDArray[np.int64]

# Beyond this many weights, sorted points are gathered in cells: their prefix sums take four times
# the memory of the weights, which a large layer should not.
_SORT_LIMIT = 1 << 22
_CELLS = 1 << 16
# Native code gathers cells without sorting; below this sorting is as fast, and exact.
_NATIVE_SORT_LIMIT = 1 << 18
_SAMPLE = 1 << 20
_PIECES = 16
_CAP_ROUNDS = 4
_BLOCK = 1 << 20
# The dynamic program costs k · m · log m: exact up to this many points, otherwise on cells.
_EXACT_POINTS = 4096
_EXACT_K = 256
# For more centers than this a window of the dynamic program is faster than the recursion.
_MANY = 64
_BINS = 1 << 14
_FEW_BOUNDARIES = 8
_EVEN = 8
_MAX_ITERATIONS = 1000
_DENORMAL = 1e-40


@dataclass(frozen=True)
class Points:
    """Points on a line, ascending, with running sums of their masses.

    Attributes:
        x: Positions, ascending, float64, ``(m,)``.
        mass: ``mass[i]`` is the mass of the first ``i`` points, ``(m + 1,)``.
        moment: The same for mass times position, ``(m + 1,)``.
    """

    x: Float32 | Float64
    mass: Float64 | Int64
    moment: Float64

    @classmethod
    def build(cls, x: Float32 | Float64, mass: Float64 | None) -> Points:
        """From ascending positions and their masses (``None``: 1 each)."""
        weighted = x if mass is None else x * mass
        total = np.arange(len(x) + 1) if mass is None else _prefix(mass)
        return cls(x, total, _prefix(weighted))


def fit_scalar(
    values: Tensor,
    k: int,
    *,
    importance: Tensor | None = None,
    keep_zeros: bool = False,
) -> Tensor:
    """Centers that minimize the (weighted) squared error of single weights.

    The exact optimum (dynamic programming, see :mod:`vq_plugin.fit.optimal`) for up to 4096
    distinct weights; otherwise the optimum on companded cells, or for many centers the companded
    quantiles themselves, polished by Lloyd iterations on every weight until nothing moves
    (on 65,536 cells or more above 4 M weights, with native kernels above 262,144).

    Args:
        values: Float32, ``(n,)``, finite, n >= 1.
        k: Centers wanted.
        importance: Float32, ``(n,)``, positive; the mass of every weight in the error.
        keep_zeros: Pin one center at 0 where some weight is exactly 0.

    Returns:
        Ascending float64 centers, ``(min(k, distinct values),)``.
    """
    pin = keep_zeros and bool((values == 0).any())
    points = _gather(values, importance, k)
    if pin:
        return torch.from_numpy(_fit_beside_zero(points, k))
    return torch.from_numpy(_fit(points, k))


def assign_scalar(values: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest center of every value.

    Args:
        values: Float32, ``(n,)``.
        centers: Ascending floats, ``(k,)``.

    Returns:
        Codes in the smallest integer dtype, ``(n,)``.
    """
    codes = torch.empty(len(values), dtype=code_dtype(len(centers)))
    wide = centers.double()
    # float32 boundaries: comparing in float64 would copy the weights.
    boundaries = ((wide[1:] + wide[:-1]) / 2).float()
    search: Callable[[Tensor], Tensor]
    if len(centers) <= native.MOST_CENTERS and native.native_fits():
        search = partial(native.scalar_codes, boundaries=boundaries)
    else:
        search = _lookup(boundaries, codes.dtype) or partial(torch.bucketize, boundaries=boundaries)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        codes[block] = search(values[block])

    deterministic_map(fill, range(0, len(values), _BLOCK))
    return codes


def _lookup(boundaries: Tensor, dtype: torch.dtype) -> Callable[[Tensor], Tensor] | None:
    """``torch.bucketize`` by even bins with at most one boundary each, several times faster.

    ``None`` where two boundaries share a bin. Rounding does no harm: the bin of a value never
    falls as the value grows, and boundaries are binned like values.
    """
    if len(boundaries) < _FEW_BOUNDARIES:
        return None
    low, width = boundaries[0], (boundaries[-1] - boundaries[0]) / (_BINS - 1)

    def bin_of(values: Tensor) -> Tensor:
        return ((values - low) / width).clamp_(0, _BINS - 1).int()

    used = bin_of(boundaries).long()
    if not bool(width > 0) or bool((used.diff() == 0).any()):
        return None
    before = torch.searchsorted(used, torch.arange(_BINS)).to(dtype)
    inside = torch.full((_BINS,), torch.inf, dtype=torch.float32)
    inside[used] = boundaries

    def search(values: Tensor) -> Tensor:
        index = bin_of(values)
        return before.index_select(0, index).add_(values > inside.index_select(0, index))

    return search


def _prefix(values: Float32 | Float64) -> Float64:
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, dtype=np.float64, out=sums[1:])
    return sums


def _gather(values: Tensor, importance: Tensor | None, k: int) -> Points:
    if len(values) > min(_SORT_LIMIT, _NATIVE_SORT_LIMIT) and native.native_fits():
        points = _native_cells(values, importance)
        # Few cells may hide several values each, which k centers could reproduce.
        if len(points.x) > k:
            return points
    if importance is None:
        x: Float32 = _sorted(values)
        mass = None
    else:
        order = np.argsort(values.numpy())
        x, mass = values.numpy()[order], importance.numpy()[order].astype(np.float64)
    if len(x) <= _SORT_LIMIT:
        return Points.build(x, mass)
    return _cells(x, mass)


def _sorted(values: Tensor) -> Float32:
    """Sorted halves, side by side, then merged: the stable sort finds the two runs."""
    x: Float32 = values.numpy().copy()
    deterministic_map(lambda half: half.sort(), np.array_split(x, 2))
    x.sort(kind="stable")
    return x


def _cells(x: Float32, mass: Float64 | None) -> Points:
    """Means and masses of cells; zeros keep a cell of their own."""
    steps = x[1:] != x[:-1]
    if np.count_nonzero(steps) < _CELLS:
        starts = _run_starts(steps)
    else:
        # Of the dtype of x: another one would have x copied to a common one.
        zeros = [np.searchsorted(x, np.float32(0), side) for side in ("left", "right")]
        starts = np.union1d(_companded_starts(x, None, _CELLS), [at for at in zeros if at < len(x)])
    ends = np.append(starts[1:], len(x))
    # Cell by cell: reduceat would first copy all weights to float64.
    if mass is None:
        total = (ends - starts).astype(np.float64)
        moment = [x[a:b].sum(dtype=np.float64) for a, b in zip(starts, ends, strict=True)]
    else:
        total = np.add.reduceat(mass, starts)
        moment = [np.dot(x[a:b], mass[a:b]) for a, b in zip(starts, ends, strict=True)]
    return Points.build(np.array(moment) / total, total)


def _native_cells(values: Tensor, importance: Tensor | None) -> Points:
    """Means and masses of cells that the bits of a value choose: one pass, no sorting."""
    sample = values[:: max(1, len(values) // _SAMPLE)].contiguous()
    offset, shift = _cell_map(sample)
    step = max(_SORT_LIMIT, -(-len(values) // _PIECES))

    def sums(start: int) -> Tensor:
        block = slice(start, start + step)
        mass = None if importance is None else importance[block]
        return native.scalar_cells(values[block], mass, offset, shift)

    total: Float64 = sum(deterministic_map(sums, range(0, len(values), step))).numpy()  # type: ignore[union-attr]
    mass, moment = total[total[:, 0] > 0].T
    x = moment / mass
    # Denormal numbers share the cell of exact zeros.
    x[np.abs(x) < _DENORMAL] = 0
    return Points.build(x, mass)


def _cell_map(sample: Tensor) -> tuple[Tensor, Tensor]:
    """First cell and shift of every bin, for :func:`vq_plugin.ops.fit.scalar_cells`.

    Every bin, the floats that share their upper 16 bits, gets one cell; those of the sample get
    more, together about ``_CELLS``, as :func:`_companded_starts` would place them.
    """
    one_each = torch.arange(native.CELL_BINS, dtype=torch.int32)
    whole = torch.full((native.CELL_BINS,), 16, dtype=torch.uint8)
    count = native.scalar_cells(sample, None, one_each, whole)[:, 0].numpy()
    used = np.flatnonzero(count)
    # Back from the order of the bins to floats: see `ascending_bits` in csrc/fit_scalar.cpp.
    upper = np.where(used < 1 << 15, ~used, used ^ (1 << 15)).astype(np.uint32) << 16
    width = np.spacing(np.abs((upper & 0x7FFFFFFF).view(np.float32))).astype(np.float64) * (1 << 16)
    cells = count[used] ** (1 / 3) * width ** (2 / 3)
    bits = np.zeros(native.CELL_BINS, dtype=np.int64)
    bits[used] = np.rint(np.log2(_CELLS * cells / cells.sum())).clip(0, 16)
    offset = np.cumsum(1 << bits) - (1 << bits)
    return torch.from_numpy(offset.astype(np.int32)), torch.from_numpy((16 - bits).astype(np.uint8))


def _run_starts(steps: npt.NDArray[np.bool_]) -> Int64:
    """First point of every run of equal points, from where they change."""
    return np.flatnonzero(np.concatenate(([True], steps)))


def _companded_starts(x: Float32 | Float64, mass: Float64 | Int64 | None, count: int) -> Int64:
    """First points of about ``count`` cells of equal ∫ density^(1/3) (Panter & Dite 1951).

    That is the asymptotically optimal density of centers. A gap between two points that holds a
    mass p counts ``p^(1/3) · gap^(2/3)``, so outliers cost little; but no more than two cells:
    one cut is all that an empty stretch can use. ``mass`` is the running mass of the points,
    ``None`` for 1 each.
    """
    n = len(x)
    # Every so many points, and single ones towards both ends to resolve the tails.
    tail = np.unique(np.geomspace(1, n, 1 << 13).astype(np.int64)) - 1
    grid = np.arange(0, n, max(1, n >> 15))
    index = np.unique(np.concatenate((grid, tail, n - 1 - tail)))
    gaps = np.diff(x[index].astype(np.float64))
    masses = np.diff(index if mass is None else mass[index])
    counts = masses ** (1 / 3) * gaps ** (2 / 3)
    for _ in range(_CAP_ROUNDS):
        counts = np.minimum(counts, 2 * counts.sum() / count)
    grown = _prefix(counts)
    at = np.searchsorted(grown, np.linspace(0, grown[-1], count, endpoint=False), side="left")
    return np.unique(index[at])


def _fit(points: Points, k: int) -> Float64:
    x = points.x
    distinct = _run_starts(x[1:] != x[:-1])
    if len(distinct) <= k:
        return x[distinct].astype(np.float64)
    if len(distinct) <= _EXACT_POINTS:
        cells, exact = distinct, True
    elif k <= _EXACT_K:
        cells, exact = _companded_starts(x, points.mass, _EXACT_POINTS), False
    else:
        cells, exact = _companded_starts(x, points.mass, k), False
    starts = cells[_optimal_cells(points, cells, k, exact)] if exact or k <= _EXACT_K else cells
    # Companding can yield fewer cells than k where many points coincide.
    starts = _split_until(points, starts, k)
    centers = _means(points, starts)
    return centers if exact else _lloyd(points, centers)


def _fit_beside_zero(points: Points, k: int) -> Float64:
    """Centers for the other values, then Lloyd with one more center that stays at 0."""
    nonzero = points.x != 0
    if k == 1 or not nonzero.any():
        return np.zeros(1)
    others = Points.build(points.x[nonzero], np.diff(points.mass)[nonzero].astype(np.float64))
    centers = np.sort(np.append(_fit(others, k - 1), 0.0))
    return _lloyd(points, centers, pinned=int(np.searchsorted(centers, 0.0)))


def _optimal_cells(points: Points, cells: Int64, k: int, exact: bool) -> Int64:
    ends = np.append(cells, len(points.x))
    center = points.moment[-1] / points.mass[-1]
    spread = float(np.abs(points.x[[0, -1]] - center).max())
    mass = points.mass[ends].astype(np.float64)
    moment = (points.moment[ends] - center * mass) / spread
    if native.native_fits():
        return native.optimal_intervals(torch.from_numpy(mass), torch.from_numpy(moment), k).numpy()
    if not exact and k > _MANY and len(cells) > _EVEN * k:
        starts = even_starts(mass, moment, k)
        if starts is not None:
            return starts
    return optimal_starts(mass, moment, k)


def _means(points: Points, starts: Int64) -> Float64:
    ends = np.append(starts, len(points.x))
    mass = np.diff(points.mass[ends])
    # A mean can leave its interval by rounding; ascending centers must stay ascending.
    means = np.diff(points.moment[ends]) / mass
    clipped: Float64 = np.clip(means, points.x[starts], points.x[ends[1:] - 1])
    return clipped


def _lloyd(points: Points, centers: Float64, pinned: int | None = None) -> Float64:
    """Lloyd iterations until no interval changes; empty intervals are given points again."""
    before = None
    for _ in range(_MAX_ITERATIONS):
        middles = ((centers[1:] + centers[:-1]) / 2).astype(points.x.dtype)
        inner = np.searchsorted(points.x, middles, side="right")
        starts = np.concatenate(([0], inner))
        if before is not None and np.array_equal(starts, before):
            break
        before = starts
        occupied = np.flatnonzero(np.diff(np.append(starts, len(points.x))) > 0)
        if pinned is None:
            if len(occupied) < len(centers):
                starts = _split_until(points, starts[occupied], len(centers))
            centers = _means(points, starts)
        else:
            zero = centers[pinned]
            means = _means(points, starts[occupied])
            centers = centers.copy()
            centers[occupied] = means
            centers[pinned] = zero
            centers.sort()
            pinned = int(np.searchsorted(centers, zero))
    return centers


def _split_until(points: Points, starts: Int64, k: int) -> Int64:
    """Halves the widest intervals (mass · width²) until there are ``k`` non-empty ones."""
    starts = np.unique(starts)
    while len(starts) < k:
        ends = np.append(starts[1:], len(points.x))
        width = (points.x[ends - 1] - points.x[starts]).astype(np.float64)
        widest = int(np.argmax(np.diff(points.mass[np.append(starts, len(points.x))]) * width**2))
        middle = (points.x[starts[widest]] + points.x[ends[widest] - 1]) / 2
        cut = starts[widest] + np.searchsorted(
            points.x[starts[widest] : ends[widest]], middle, side="right"
        )
        starts = np.sort(np.append(starts, min(max(cut, starts[widest] + 1), ends[widest] - 1)))
    return starts
