"""Which weight gets how many bytes: a multiple-choice knapsack by its convex relaxation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise


def lower_hull(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indexes of the lower convex hull of ``(bytes, harm)`` points.

    From the least harmful point to the smallest; harm grows ever faster per byte saved.

    Example:
        >>> lower_hull([(8, 0.0), (6, 0.9), (4, 1.0), (2, 4.0)])
        [0, 2, 3]
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][1], points[i][0]))
    hull: list[int] = []
    for index in order:
        if hull and points[index][0] >= points[hull[-1]][0]:
            continue
        while len(hull) > 1 and _slope(points[hull[-2]], points[hull[-1]]) >= _slope(
            points[hull[-1]], points[index]
        ):
            hull.pop()
        hull.append(index)
    return hull


def steps(
    layers: Sequence[Sequence[tuple[float, float]]],
) -> tuple[list[int], list[tuple[int, int]]]:
    """The least harmful choice of every layer, and the steps from there to the smallest.

    One step, ``(layer, choice)``, takes one layer to its next hull point, the cheapest in harm per
    byte saved first (the Lagrangian of Shoham & Gersho 1988, "Efficient bit allocation for an
    arbitrary set of quantizers"): what is reached by each is the least harmful of its size if
    harms add up.

    Args:
        layers: ``(bytes, harm)`` of every choice, layer by layer.

    Example:
        >>> steps([[(8, 0.0), (4, 1.0)], [(6, 0.0), (5, 1.0), (1, 1.5)]])
        ([0, 0], [(0, 1), (1, 2)])
    """
    hulls = [lower_hull(layer) for layer in layers]
    found = [
        (_slope(layers[i][one], layers[i][next_one]), i, next_one)
        for i, hull in enumerate(hulls)
        for one, next_one in pairwise(hull)
    ]
    # Within a layer slopes grow strictly, so that the order by slope keeps its steps in order.
    found.sort(key=lambda step: step[:2])
    return [hull[0] for hull in hulls], [(layer, choice) for _, layer, choice in found]


def _slope(larger: tuple[float, float], smaller: tuple[float, float]) -> float:
    """Harm per byte saved."""
    return (smaller[1] - larger[1]) / (larger[0] - smaller[0])
