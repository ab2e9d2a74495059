"""K-means on single weights: 1-D, on sorted weighted points.

In one dimension clusters are intervals, so after one sort every sum over a cluster is the
difference of two prefix sums: a Lloyd iteration costs k searches instead of n·k distances.
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.line import Points, companded_starts, run_starts
from vq_plugin.fit.optimal import Float64, Int64
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.schemes import torch_code_dtype

_BLOCK = 1 << 20
# The dynamic program costs k · m · log m: exact up to this many points, otherwise on cells.
_EXACT_POINTS = 4096
_EXACT_K = 256
_MAX_ITERATIONS = 1000


def fit_scalar(
    values: Tensor, k: int, *, importance: Tensor | None = None, keep_zeros: bool = False
) -> Tensor:
    """Ascending centers, float64 ``(k',)``, of least (weighted) squared error of single weights.

    The exact optimum (dynamic programming, see :mod:`vq_plugin.fit.optimal`) for up to 4096
    distinct weights; otherwise the optimum on companded cells, or for many centers the companded
    quantiles themselves, polished by Lloyd iterations on every weight until nothing moves (on
    65,536 cells or more above 4 M weights, with native kernels above 262,144). With ``keep_zeros``
    one center is pinned at 0 where some weight is exactly 0.
    """
    beside_zero = keep_zeros and bool((values == 0).any())
    kernels = best_kernels()
    if importance is None and not beside_zero and len(values) <= _EXACT_POINTS:
        centers = kernels.few_centers(values, k)
        if centers is not None:
            return centers
    fit = _fit_beside_zero if beside_zero else _fit
    return torch.from_numpy(fit(kernels.points(values, importance, k), k))


def assign_scalar(values: Tensor, centers: Tensor) -> Tensor:
    """Index of the nearest of ascending ``centers``, ``(k,)``, of every value, ``(n,)``."""
    wide, inner = centers.double(), len(centers) - 1
    # float32 boundaries: comparing in float64 would copy the weights.
    boundaries = ((wide.narrow(0, 0, inner) + wide.narrow(0, 1, inner)) / 2).float()
    search = best_kernels().code_search(boundaries)
    dtype = torch_code_dtype(len(centers))
    if len(values) <= _BLOCK:
        return search(values).to(dtype)
    codes = torch.empty(len(values), dtype=dtype)

    def fill(start: int) -> None:
        block = slice(start, start + _BLOCK)
        codes[block] = search(values[block])

    deterministic_map(fill, range(0, len(values), _BLOCK))
    return codes


def _fit(points: Points, k: int) -> Float64:
    x = points.x
    distinct = run_starts(x[1:] != x[:-1])
    if len(distinct) <= k:
        return x[distinct].astype(np.float64)
    exact = len(distinct) <= _EXACT_POINTS
    if exact:
        starts = distinct[_optimal_cells(points, distinct, k, exact)]
    elif k <= _EXACT_K:
        cells = companded_starts(x, points.mass, _EXACT_POINTS)
        starts = cells[_optimal_cells(points, cells, k, exact)]
    else:
        starts = companded_starts(x, points.mass, k)
    if exact:
        return _means(points, starts)
    # Companding can yield fewer cells than k where many points coincide.
    return _settled(points, _means(points, _split_until(points, starts, k)))


def _fit_beside_zero(points: Points, k: int) -> Float64:
    """Centers for the other values, then Lloyd with one more center that stays at 0."""
    nonzero = points.x != 0
    if k == 1 or not nonzero.any():
        return np.zeros(1)
    others = Points.build(points.x[nonzero], np.diff(points.mass)[nonzero].astype(np.float64))
    centers = np.sort(np.append(_fit(others, k - 1), 0.0))
    return _settled(points, centers, pinned=int(np.searchsorted(centers, 0.0)))


def _optimal_cells(points: Points, cells: Int64, k: int, exact: bool) -> Int64:
    ends = np.append(cells, len(points.x))
    center = points.moment[-1] / points.mass[-1]
    spread = float(np.abs(points.x[[0, -1]] - center).max())
    mass = points.mass[ends].astype(np.float64)
    moment = (points.moment[ends] - center * mass) / spread
    return best_kernels().interval_starts(mass, moment, k, even=not exact)


def _means(points: Points, starts: Int64) -> Float64:
    ends = np.append(starts, len(points.x))
    mass = np.diff(points.mass[ends])
    # A mean can leave its interval by rounding; ascending centers must stay ascending.
    means = np.diff(points.moment[ends]) / mass
    clipped: Float64 = np.minimum(np.maximum(means, points.x[starts]), points.x[ends[1:] - 1])
    return clipped


def _settled(points: Points, centers: Float64, pinned: int | None = None) -> Float64:
    """Lloyd iterations until no interval changes; empty intervals are given points again."""
    before = np.empty(0)
    for _ in range(_MAX_ITERATIONS):
        middles = ((centers[1:] + centers[:-1]) / 2).astype(points.x.dtype)
        inner = np.searchsorted(points.x, middles, side="right")
        starts = np.concatenate(([0], inner))
        if np.array_equal(starts, before):
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
        widest = int(np.argmax((points.mass[ends] - points.mass[starts]) * width**2))
        first, end = starts[widest], ends[widest]
        middle = (points.x[first] + points.x[end - 1]) / 2
        cut = first + np.searchsorted(points.x[first:end], middle, side="right")
        starts = np.sort(np.append(starts, np.clip(cut, first + 1, end - 1)))
    return starts
