"""The exact optimum of weighted 1-D k-means, by dynamic programming."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Float64 = npt.NDArray[np.float64]
Int64 = npt.NDArray[np.int64]


def optimal_starts(mass: Float64, moment: Float64, k: int) -> Int64:
    """First points of the ``k`` intervals of least within-interval squared error.

    ``best[q][j] = min_i best[q-1][i] + cost(i, j)`` with monotone arg minima, solved for all j of
    one q by divide and conquer (Grønlund et al. 2017, arXiv 1701.07204, section 3), every
    level of the recursion at once: O(k · m · log m).

    The squared error of an interval is Σ mass·x² − (Σ mass·x)² / Σ mass, and the first term adds
    up to the same total for every partition, so only the second is needed.

    ``mass`` is the running mass before each of m points and after the last, ``moment`` the same for
    mass times position; 1 <= k <= m. Indices are ascending.
    """
    m = len(mass) - 1

    def gain(start: Int64, end: Int64) -> Float64:
        inside = np.maximum(mass[end] - mass[start], 1e-300)
        return np.asarray((moment[end] - moment[start]) ** 2 / inside)

    ends = np.arange(1, m + 1)
    best = np.full(m + 1, -np.inf)
    best[1:] = gain(np.zeros_like(ends), ends)
    cuts = np.zeros((k, m + 1), dtype=np.int64)
    levels = _bisection_levels(m)
    for q in range(1, k):
        cut = cuts[q]
        value = np.full(m + 1, -np.inf)
        # cut[j] is bounded by its neighbours of coarser levels; q intervals need q points.
        low_bound = np.full(m + 2, q, dtype=np.int64)
        high_bound = np.full(m + 2, m - 1, dtype=np.int64)
        for middle, left, right in levels:
            use = middle > q
            j, left_j, right_j = middle[use], left[use], right[use]
            if not len(j):
                continue
            low = np.where(left_j > q, cut[left_j], low_bound[j])
            high = np.minimum(
                np.where(right_j <= m, cut[np.minimum(right_j, m)], high_bound[j]), j - 1
            )
            count = high - low + 1
            first = np.cumsum(count) - count
            owner = np.repeat(np.arange(len(j)), count)
            candidate = np.arange(count.sum()) - first[owner] + low[owner]
            total = best[candidate] + gain(candidate, j[owner])
            top = np.maximum.reduceat(total, first)
            hit = np.flatnonzero(total == top[owner])
            chosen = candidate[hit[np.searchsorted(owner[hit], np.arange(len(j)))]]
            cut[j], value[j] = chosen, top
        best = value
    starts = np.zeros(k, dtype=np.int64)
    end = m
    for q in range(k - 1, 0, -1):
        end = starts[q] = cuts[q][end]
    return starts


def _bisection_levels(m: int) -> list[tuple[Int64, Int64, Int64]]:
    """Middle, left and right neighbour of 1..m, level by level of a bisection of 0..m+1."""
    levels = []
    left, right = np.array([0]), np.array([m + 1])
    while len(left):
        middle = (left + right) // 2
        levels.append((middle, left, right))
        left, right = np.concatenate((left, middle)), np.concatenate((middle, right))
        open_ = right - left > 1
        left, right = left[open_], right[open_]
    return levels


def even_starts(mass: Float64, moment: Float64, k: int) -> Int64 | None:
    """The same optimum among partitions into intervals of about m / k points each.

    For many intervals on points that already have the density of centers, a window replaces the
    recursion: intervals of at most 4·m/k points, ending within m/8 points of an even partition.
    ``None`` if the best such partition touches a limit.
    """
    m = len(mass) - 1
    longest, drift = 4 * -(-m // k), m // 8
    start = np.arange(m + 1)[:, None] - longest + np.arange(longest)
    inside = np.maximum(mass[:, None] - mass[start.clip(0)], 1e-300)
    gain = (moment[:, None] - moment[start.clip(0)]) ** 2 / inside
    gain[start < 0] = -np.inf
    best = np.full(longest + m + 1, -np.inf)
    best[longest] = 0
    cuts = np.zeros((k + 1, m + 1), dtype=np.int64)
    for q in range(1, k + 1):
        low = max(q, q * m // k - drift)
        high = min(m, q * m // k + drift)
        windows = np.lib.stride_tricks.sliding_window_view(best, longest)[low : high + 1]
        total = windows + gain[low : high + 1]
        chosen = total.argmax(1)
        cuts[q, low : high + 1] = chosen + np.arange(low, high + 1) - longest
        best = np.full(longest + m + 1, -np.inf)
        best[longest + low : longest + high + 1] = total[np.arange(len(chosen)), chosen]
    starts = np.zeros(k, dtype=np.int64)
    end = m
    for q in range(k, 0, -1):
        starts[q - 1] = cuts[q, end]
        even = (q - 1) * m // k
        if end - starts[q - 1] >= longest or (q > 1 and abs(starts[q - 1] - even) >= drift):
            return None
        end = starts[q - 1]
    return starts
