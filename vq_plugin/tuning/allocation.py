"""Which layer gets how many bytes: a multiple-choice knapsack by its convex relaxation."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TypeAlias

from vq_plugin.tuning.result import LayerCandidate

# Index of the chosen candidate, layer by layer.
Setting: TypeAlias = tuple[int, ...]


def pareto(candidates: Sequence[LayerCandidate]) -> list[LayerCandidate]:
    """Candidates that no other beats in both bytes and error, from the largest to the smallest."""
    kept: list[LayerCandidate] = []
    for candidate in sorted(candidates, key=lambda c: (c.nbytes, c.error)):
        if not kept or candidate.error < kept[-1].error:
            kept.append(candidate)
    return kept[::-1]


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


def frontier(layers: Sequence[Sequence[LayerCandidate]]) -> list[Setting]:
    """Settings of the whole model along the lower hull of predicted harm against bytes.

    One step changes one layer to its next hull point, the cheapest in harm per byte saved first
    (the Lagrangian of Shoham & Gersho 1988, "Efficient bit allocation for an arbitrary set of
    quantizers"); every setting is the least harmful of its size if harms add up. They come from
    the least harmful to the smallest.
    """
    hulls = [lower_hull([(c.nbytes, c.harm) for c in layer]) for layer in layers]
    steps = [
        (_slope(*((layers[i][j].nbytes, layers[i][j].harm) for j in pair)), i, pair[1])
        for i, hull in enumerate(hulls)
        for pair in pairwise(hull)
    ]
    setting = [hull[0] for hull in hulls]
    settings = [tuple(setting)]
    # Within a layer slopes grow strictly, so that the order by slope keeps its steps in order.
    for _, layer, choice in sorted(steps, key=lambda step: step[:2]):
        setting[layer] = choice
        settings.append(tuple(setting))
    return settings


def _slope(larger: tuple[float, float], smaller: tuple[float, float]) -> float:
    """Harm per byte saved."""
    return (smaller[1] - larger[1]) / (larger[0] - smaller[0])
