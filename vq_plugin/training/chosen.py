"""The weights of a float model that training changes."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from vq_plugin.nn import Slot
from vq_plugin.nn.recomputed import made_one
from vq_plugin.select import Pattern, match, slots_by_name


def chosen_weights(model: nn.Module, layers: Sequence[Pattern]) -> dict[Slot, nn.Parameter]:
    """The weights of the layers that patterns choose; one that layers share is there once.

    ``ValueError`` names a layer that keeps its weight in parts, or frozen.
    """
    if isinstance(layers, str):
        raise TypeError(f"layers is a sequence of patterns, such as [{layers!r}]")
    chosen: dict[int, tuple[Slot, nn.Parameter]] = {}
    for name, slot in slots_by_name(model, match(model, layers)).items():
        weight = slot.module._parameters.get(slot.parameter)
        if weight is None:
            raise ValueError(
                f"layer {name!r} keeps its weight in parts: make it one, as with "
                + made_one(slot.module, slot.parameter)
            )
        if not weight.requires_grad:
            raise ValueError(f"layer {name!r} is frozen: leave it out of layers=")
        chosen.setdefault(id(weight), (slot, weight))
    return dict(chosen.values())
