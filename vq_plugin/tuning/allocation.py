"""Settings of a whole model: which candidate each layer takes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeAlias

from vq_plugin.allocation import steps
from vq_plugin.tuning.result import LayerCandidate

# Index of the chosen candidate, layer by layer.
Setting: TypeAlias = tuple[int, ...]


def frontier(layers: Sequence[Sequence[LayerCandidate]]) -> list[Setting]:
    """Settings of the whole model along the lower hull of predicted harm against bytes.

    From the least harmful to the smallest, one step of :func:`vq_plugin.allocation.steps` after
    the other.
    """
    setting, following = steps([[(c.nbytes, c.harm) for c in layer] for layer in layers])
    settings = [tuple(setting)]
    for layer, choice in following:
        setting[layer] = choice
        settings.append(tuple(setting))
    return settings
