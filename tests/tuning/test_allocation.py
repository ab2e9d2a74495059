"""The predicted frontier against brute force."""

import itertools
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.spatial import ConvexHull

from vq_plugin.allocation import lower_hull
from vq_plugin.tuning.allocation import frontier
from vq_plugin.tuning.result import LayerCandidate

# Halves add up without rounding, so that the comparisons below are exact.
HARMS = st.integers(0, 40).map(lambda harm: harm / 2)
POINTS = st.lists(st.tuples(st.integers(1, 30), HARMS), min_size=1, max_size=8)
LAYERS = st.lists(POINTS.map(lambda ps: [candidate(*p) for p in ps]), min_size=1, max_size=4)


def candidate(nbytes: int, harm: float, error: float = 0.0) -> LayerCandidate:
    return LayerCandidate(None, nbytes, error, harm)


def total(layers: Sequence[Sequence[LayerCandidate]], setting: Sequence[int]) -> tuple[int, float]:
    chosen = [layer[i] for layer, i in zip(layers, setting, strict=True)]
    return sum(c.nbytes for c in chosen), sum(c.harm for c in chosen)


def test_the_hull_is_scipys() -> None:
    for seed in range(30):
        points = np.random.default_rng(seed).random((40, 2))
        hull = ConvexHull(points)
        # Edges whose outward normal points down and to the left, and their ends.
        lower = np.all(hull.equations[:, :2] < 0, axis=1)
        expected = set(hull.simplices[lower].ravel().tolist())
        ends = {int(points[:, 1].argmin()), int(points[:, 0].argmin())}
        found = lower_hull([(x, y) for x, y in points])
        assert set(found) == expected | ends
        assert sorted(found, key=lambda i: points[i, 1]) == found


@given(POINTS)
def test_the_hull_is_strictly_convex_and_below_every_point(
    points: list[tuple[int, float]],
) -> None:
    hull = [points[i] for i in lower_hull(points)]
    assert hull[0] == min(points, key=lambda p: (p[1], p[0]))
    assert hull[-1] == min(points)
    pairs = list(itertools.pairwise(hull))
    slopes = [(b[1] - a[1]) / (a[0] - b[0]) for a, b in pairs]
    assert all(s > 0 for s in slopes)
    assert all(a < b for a, b in itertools.pairwise(slopes))
    for x, y in points:
        for a, b in pairs:
            if b[0] <= x <= a[0]:
                assert y >= a[1] + (b[1] - a[1]) * (a[0] - x) / (a[0] - b[0]) - 1e-9


@given(LAYERS)
def test_every_setting_of_the_frontier_is_the_best_of_its_size(
    layers: list[list[LayerCandidate]],
) -> None:
    combinations = [
        total(layers, setting) for setting in itertools.product(*(range(len(x)) for x in layers))
    ]
    settings = frontier(layers)
    for setting in settings:
        nbytes, harm = total(layers, setting)
        assert harm == min(h for b, h in combinations if b <= nbytes)
        assert nbytes == min(b for b, h in combinations if h <= harm)
    assert total(layers, settings[0])[1] == min(h for _, h in combinations)
    assert total(layers, settings[-1])[0] == min(b for b, _ in combinations)
    for before, after in itertools.pairwise(settings):
        assert sum(a != b for a, b in zip(before, after, strict=True)) == 1
        assert total(layers, after)[0] < total(layers, before)[0]
        assert total(layers, after)[1] > total(layers, before)[1]
    # Nested: what became smaller never grows again.
    for layer, choices in enumerate(zip(*settings, strict=True)):
        sizes = [layers[layer][i].nbytes for i in choices]
        assert sizes == sorted(sizes, reverse=True)


@given(LAYERS)
def test_the_frontier_is_the_hull_of_all_combinations(layers: list[list[LayerCandidate]]) -> None:
    every = [total(layers, s) for s in itertools.product(*(range(len(x)) for x in layers))]
    corners = {every[i] for i in lower_hull(every)}
    assert corners <= {total(layers, setting) for setting in frontier(layers)}


def test_a_layer_with_one_candidate_is_fixed() -> None:
    layers = [[candidate(5, 3.0)], [candidate(8, 0.0), candidate(4, 1.0)]]
    assert frontier(layers) == [(0, 0), (0, 1)]
    assert frontier([[candidate(5, 3.0)]]) == [(0,)]


def test_harms_that_are_all_zero_leave_the_smallest() -> None:
    assert lower_hull([(8, 0.0), (2, 0.0), (4, 0.0)]) == [1]
    assert lower_hull([(1, 0.5)]) == [0]
    assert lower_hull([(4, 2.0), (4, 1.0), (4, 1.0)]) == [1]


@pytest.mark.parametrize("scale", [1e-12, 1e9])
def test_the_unit_of_harm_does_not_matter(scale: float) -> None:
    rng = np.random.default_rng(0)
    layers = [
        [candidate(int(rng.integers(1, 99)), float(rng.random())) for _ in range(6)]
        for _ in range(5)
    ]
    scaled = [[candidate(c.nbytes, c.harm * scale) for c in layer] for layer in layers]
    assert frontier(scaled) == frontier(layers)
