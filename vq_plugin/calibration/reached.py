"""Which weights data have reached, and who speaks for the others."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Collection, Mapping

from torch import nn

from vq_plugin.calibration.statistics import InputMoments, named_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import Slot


def moments_by_name(
    model: nn.Module,
    observed: Mapping[Slot, InputMoments],
    called: Collection[Slot],
    read: Collection[Slot] = (),
) -> dict[str, Moments]:
    """What the fits want to know of slots that were observed while a model ran.

    Of slots that share a weight, the first that ran speaks for all. One whose weight was ``read``
    by its owner and whose module was never called, as a table of relative positions is, tells no
    inputs: it is left out and named in a warning. So is, where others ran, one that was ``called``
    with nothing, whose weight a module that was not observed has, too, or that is an item of a list
    of which another ran, as experts and branches are. A ``ValueError`` names any other that no data
    reached.
    """
    owners: dict[object, list[InputMoments]] = {}
    for slot, moments in observed.items():
        owners.setdefault(_weight_of(slot), []).append(moments)
    lists = {
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.ModuleList | nn.ModuleDict)
    }
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    ran = [slot for slot, moments in observed.items() if moments.count > 0]
    places = {place for slot in ran for place in _places(slot, lists)}
    by_name: dict[str, Moments] = {}
    without: list[str] = []
    for slot, own in observed.items():
        known = owners[_weight_of(slot)]
        moments = next((each for each in known if each.count > 0), own)
        weight = slot.module._parameters.get(slot.parameter)
        elsewhere = weight is not None and holders[id(weight)] > len(known)
        may_idle = slot in called or elsewhere or bool(places & _places(slot, lists))
        only_read = slot in read and slot not in called
        if moments.count == 0 and (only_read or (ran and may_idle)):
            without.append(slot.shown)
        else:
            by_name[slot.name] = named_moments(slot.name, moments)
    if without:
        warnings.warn(
            f"calibration gave no samples to {', '.join(without)}: fitted by their weights alone",
            stacklevel=4,
        )
    return by_name


def _weight_of(slot: Slot) -> object:
    """What is the same for slots that are one weight in one view."""
    own = slot.module._parameters.get(slot.parameter)
    return (id(slot.module), slot.parameter) if own is None else (id(own), slot.view)


def _places(slot: Slot, lists: Collection[str]) -> set[tuple[str, str]]:
    """The lists of modules that a slot is in, and where below an item of each."""
    steps = slot.name.split(".")
    return {
        (".".join(steps[:at]), ".".join(steps[at + 1 :]))
        for at in range(len(steps))
        if ".".join(steps[:at]) in lists
    }
