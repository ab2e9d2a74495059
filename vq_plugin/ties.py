"""Weights that several modules share."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from torch import nn

from vq_plugin.nn import Slot, find_slots, other_parameters


def sharing(model: nn.Module) -> dict[str, list[Slot]]:
    """The slots that share the weight of each, by its name; itself included, the first first."""
    found = find_slots(model)
    return owners_of((*found.values(), *other_parameters(model, found).values()))


def owners_of(slots: Iterable[Slot]) -> dict[str, list[Slot]]:
    """As :func:`sharing`, for all slots of a model, which are found already."""
    slots = list(slots)
    groups: dict[tuple[int, str], list[Slot]] = {}
    for slot in slots:
        groups.setdefault(_identity(slot), []).append(slot)
    return {slot.name: groups[_identity(slot)] for slot in slots}


def _identity(slot: Slot) -> tuple[int, str]:
    own = slot.module._parameters.get(slot.parameter)
    # What is computed at every access has no identity, but that of its module.
    return (id(slot.module), slot.parameter) if own is None else (id(own), "")


def tied_weights(model: nn.Module, chosen: Mapping[str, object]) -> dict[str, str]:
    """The first owner of the weight, by the name of every chosen slot that is a later one.

    A parameter without a slot follows the weight that it is. ``ValueError`` if slots
    that share a weight are not all chosen, with one scheme.
    """
    found = find_slots(model)
    owners = owners_of((*found.values(), *other_parameters(model, found).values()))
    named = {*found, *chosen}
    ties: dict[str, str] = {}
    for name, scheme in chosen.items():
        first, *others = (slot.name for slot in owners[name] if slot.name in named)
        for other in {first, *others} - {name}:
            if chosen.get(other) != scheme:
                raise ValueError(
                    f"layers {name!r} and {other!r} share one weight: choose both with the same "
                    f"scheme, or neither ({name!r}: {scheme}, {other!r}: {chosen.get(other)})"
                )
        if first != name:
            ties[name] = first
    return ties
