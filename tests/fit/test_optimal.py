"""The dynamic program against every partition there is."""

from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from vq_plugin.fit.optimal import even_starts, optimal_starts


def interval_error(x: np.ndarray, mass: np.ndarray) -> float:
    mean = (x * mass).sum() / mass.sum()
    return float((mass * (x - mean) ** 2).sum())


def partition_error(x: np.ndarray, mass: np.ndarray, starts: list[int]) -> float:
    parts = zip(starts, [*starts[1:], len(x)], strict=True)
    return sum(interval_error(x[a:b], mass[a:b]) for a, b in parts)


def solve(x: np.ndarray, mass: np.ndarray, k: int) -> list[int]:
    running = np.concatenate([[0.0], np.cumsum(mass)])
    moment = np.concatenate([[0.0], np.cumsum(mass * x)])
    return optimal_starts(running, moment, k).tolist()


@settings(max_examples=200)
@given(
    points=st.lists(st.tuples(st.integers(-30, 30), st.integers(1, 6)), min_size=1, max_size=9).map(
        sorted
    ),
    data=st.data(),
)
def test_no_partition_into_intervals_is_better(
    points: list[tuple[int, int]], data: st.DataObject
) -> None:
    x = np.array([p[0] for p in points], dtype=float)
    mass = np.array([p[1] for p in points], dtype=float)
    k = data.draw(st.integers(1, len(x)))
    starts = solve(x, mass, k)
    assert len(starts) == k
    assert starts[0] == 0
    assert starts == sorted(set(starts))
    best = min(partition_error(x, mass, [0, *c]) for c in combinations(range(1, len(x)), k - 1))
    assert partition_error(x, mass, starts) == pytest.approx(best, abs=1e-9)


@pytest.mark.parametrize("m", [1, 2, 3, 7, 8, 9, 100])
def test_as_many_intervals_as_points_is_every_point_alone(m: int) -> None:
    assert solve(np.arange(m, dtype=float), np.ones(m), m) == list(range(m))


def test_clear_clusters_of_unequal_size_and_mass_are_found() -> None:
    rng = np.random.default_rng(0)
    sizes = [5, 400, 60, 1, 200]
    x = np.concatenate([rng.normal(10.0 * i, 0.1, n) for i, n in enumerate(sizes)])
    x.sort()
    mass = rng.uniform(0.01, 100, len(x))
    assert solve(x, mass, 5) == np.concatenate([[0], np.cumsum(sizes)[:-1]]).tolist()


def running(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return np.arange(len(x) + 1.0), np.concatenate(([0.0], np.cumsum(x)))


@pytest.mark.parametrize("k", [8, 20, 65])
def test_on_evenly_spread_points_the_window_finds_the_optimum(k: int) -> None:
    x = np.sort(np.random.default_rng(k).uniform(-1, 1, 800))
    found = even_starts(*running(x), k)
    assert found is not None
    assert np.array_equal(found, optimal_starts(*running(x), k))


def test_the_window_says_so_where_the_optimum_may_lie_outside() -> None:
    # Half of the points in one place: the best partition is far from even.
    x = np.concatenate((np.full(400, -1.0), np.linspace(0, 1, 400)))
    assert even_starts(*running(x), 40) is None
