"""What calibration gathers of the inputs of weights, between a host's two calls.

A module holds the statistics of its slots itself, in a submodule and by a hook of its own: they
survive deep copies and are part of the ``state_dict``, as hosts expect of observers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn

from vq_plugin.calibration import InputMoments, named_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import Slot
from vq_plugin.nn.inputs import call_arguments

# The submodule that holds them.
INPUT_STATS = "input_stats"


def attach_statistics(slots: Iterable[Slot]) -> list[nn.Module]:
    """Lets modules gather statistics of inputs where these are known; returns those new to it."""
    fresh: list[nn.Module] = []
    for slot in slots:
        if not slot.observable:
            continue
        host = slot.host
        if not hasattr(host, INPUT_STATS):
            host.add_module(INPUT_STATS, nn.ModuleDict())
            host.register_forward_pre_hook(observe, with_kwargs=True)
            fresh.append(host)
        statistics = host.get_submodule(INPUT_STATS)
        assert isinstance(statistics, nn.ModuleDict)
        if _leaf(slot) not in statistics:
            statistics[_leaf(slot)] = InputMoments(slot).to(slot.value.device)
    return fresh


def detach_statistics(model: nn.Module, but: Iterable[nn.Module] = ()) -> None:
    """Takes the statistics off all modules of a model, in place, ``but`` some."""
    kept = set(but)
    for module in list(model.modules()):
        if module in kept or not isinstance(getattr(module, INPUT_STATS, None), nn.ModuleDict):
            continue
        delattr(module, INPUT_STATS)
        for key, hook in list(module._forward_pre_hooks.items()):
            if hook is observe:
                del module._forward_pre_hooks[key]
                module._forward_pre_hooks_with_kwargs.pop(key, None)


def gathered_moments(slots: Mapping[str, Slot], *, required: bool = True) -> dict[str, Moments]:
    """What the fits want to know of slots, by name, from the statistics of their modules.

    Slots without statistics are left out. A ValueError names a slot with inputs that were not
    finite, or none; where it is not ``required``, it is no error if no slot at all has seen one.
    """
    gathered = {name: m for name, slot in slots.items() if (m := _statistics(slot)) is not None}
    if not required and not any(moments.count > 0 for moments in gathered.values()):
        return {}
    return {name: named_moments(name, moments) for name, moments in gathered.items()}


def _statistics(slot: Slot) -> InputMoments | None:
    statistics = getattr(slot.host, INPUT_STATS, None)
    if not isinstance(statistics, nn.ModuleDict) or _leaf(slot) not in statistics:
        return None
    moments: InputMoments = statistics[_leaf(slot)]  # type: ignore[assignment]
    return moments


def _leaf(slot: Slot) -> str:
    return slot.key.replace(".", "_")


def observe(host: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    """Adds what a module that gathers statistics is called with."""
    # A plain function: deep copies of the hook must find the statistics of the copied module.
    arguments = call_arguments(host, positional, keywords)
    if arguments is not None:
        for moments in getattr(host, INPUT_STATS).values():
            moments.add(host, arguments)
