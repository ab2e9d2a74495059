"""Single weights as points on a line, ascending."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from torch import Tensor

from vq_plugin.fit.optimal import Float64, Int64
from vq_plugin.fit.parallel import deterministic_map

Float32 = npt.NDArray[np.float32]

# Beyond this many weights, sorted points are gathered in cells: their prefix sums take four times
# the memory of the weights, which a large layer should not.
SORT_LIMIT = 1 << 22
CELLS = 1 << 16
_CAP_ROUNDS = 4
# Fewer weights are sorted before a thread has started.
_SMALL = 1 << 14


@dataclass(frozen=True)
class Points:
    """Points on a line, ascending, float64 ``(m,)``, with running sums ``(m + 1,)``.

    ``mass[i]`` is the mass of the first ``i`` points, ``moment[i]`` that of mass times position.
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


def _prefix(values: Float32 | Float64) -> Float64:
    sums = np.zeros(len(values) + 1)
    np.cumsum(values, dtype=np.float64, out=sums[1:])
    return sums


def sorted_points(values: Tensor, importance: Tensor | None) -> Points:
    """Values in ascending order; the means of cells of them where they are very many."""
    x, mass = values.numpy(), None
    if importance is None:
        x = _sorted(x)
    else:
        order = np.argsort(x)
        x, mass = x[order], importance.numpy()[order].astype(np.float64)
    return Points.build(x, mass) if len(x) <= SORT_LIMIT else _cells(x, mass)


def _sorted(values: Float32) -> Float32:
    """Sorted halves, side by side, then merged: the stable sort finds the two runs."""
    x = values.copy()
    middle = (len(x) + 1) // 2
    halves = x[:middle], x[middle:]
    if len(x) < _SMALL:
        for half in halves:
            half.sort()
    else:
        deterministic_map(lambda half: half.sort(), halves)
    x.sort(kind="stable")
    return x


def _cells(x: Float32, mass: Float64 | None) -> Points:
    """Means and masses of cells; zeros keep a cell of their own."""
    steps = x[1:] != x[:-1]
    if np.count_nonzero(steps) < CELLS:
        starts = run_starts(steps)
    else:
        # Of the dtype of x: another one would have x copied to a common one.
        zeros = [np.searchsorted(x, np.float32(0), side) for side in ("left", "right")]
        starts = np.union1d(companded_starts(x, None, CELLS), [at for at in zeros if at < len(x)])
    ends = np.append(starts[1:], len(x))
    # Cell by cell: reduceat would first copy all weights to float64.
    if mass is None:
        total = (ends - starts).astype(np.float64)
        moment = [x[a:b].sum(dtype=np.float64) for a, b in zip(starts, ends, strict=True)]
    else:
        total = np.add.reduceat(mass, starts)
        moment = [np.dot(x[a:b], mass[a:b]) for a, b in zip(starts, ends, strict=True)]
    return Points.build(np.array(moment) / total, total)


def run_starts(steps: npt.NDArray[np.bool_]) -> Int64:
    """First point of every run of equal points, from where they change."""
    return np.flatnonzero(np.concatenate(([True], steps)))


def companded_starts(x: Float32 | Float64, mass: Float64 | Int64 | None, count: int) -> Int64:
    """First points of about ``count`` cells of equal ∫ density^(1/3) (Panter & Dite 1951).

    That is the asymptotically optimal density of centers. A gap between two points that holds a
    mass p counts ``p^(1/3) · gap^(2/3)``, so outliers cost little; but no more than two cells:
    one cut is all that an empty stretch can use. ``mass`` is the running mass of the points,
    ``None`` for 1 each.
    """
    n = len(x)
    # Every so many points, and single ones towards both ends to resolve the tails.
    tail = np.geomspace(1, n, 1 << 13).astype(np.int64) - 1
    grid = np.arange(0, n, max(1, n >> 15))
    index = _distinct(np.sort(np.concatenate((grid, tail, n - 1 - tail)), kind="stable"))
    gaps = np.diff(x[index].astype(np.float64))
    masses = np.diff(index if mass is None else mass[index])
    counts = masses ** (1 / 3) * gaps ** (2 / 3)
    for _ in range(_CAP_ROUNDS):
        counts = np.minimum(counts, 2 * counts.sum() / count)
    grown = _prefix(counts)
    at = np.searchsorted(grown, np.linspace(0, grown[-1], count, endpoint=False), side="left")
    return _distinct(index[at])


def _distinct(ascending: Int64) -> Int64:
    # np.unique hashes, which takes several times as long.
    return ascending[run_starts(ascending[1:] != ascending[:-1])]
