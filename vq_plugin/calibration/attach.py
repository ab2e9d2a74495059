"""Statistics that live in the model between a host's prepare and its convert."""

from __future__ import annotations

from typing import Any

from torch import nn

from vq_plugin.calibration.statistics import InputMoments
from vq_plugin.nn import Slot

# The submodule that holds them.
INPUT_STATS = "input_stats"


def attach_moments(slot: Slot) -> None:
    """Lets a module gather the statistics of a slot's inputs, in a submodule and by a hook.

    They survive deep copies and are part of the ``state_dict``, as hosts expect of observers.

    Args:
        slot: Its host is changed in place; nothing happens if its inputs are not known.
    """
    if not slot.observable:
        return
    host = slot.host
    if not isinstance(getattr(host, INPUT_STATS, None), nn.ModuleDict):
        host.add_module(INPUT_STATS, nn.ModuleDict())
        host.register_forward_pre_hook(_observe, with_kwargs=True)
    statistics = host.get_submodule(INPUT_STATS)
    assert isinstance(statistics, nn.ModuleDict)
    statistics[_leaf(slot)] = InputMoments(slot).to(slot.value.device)


def detach_moments(slot: Slot) -> InputMoments | None:
    """Takes the statistics of :func:`attach_moments` off a module.

    Args:
        slot: Its host is changed in place.

    Returns:
        The statistics, or ``None`` if it has none.
    """
    host = slot.host
    statistics = getattr(host, INPUT_STATS, None)
    if not isinstance(statistics, nn.ModuleDict) or _leaf(slot) not in statistics:
        return None
    moments = statistics.pop(_leaf(slot))
    assert isinstance(moments, InputMoments)
    if not len(statistics):
        delattr(host, INPUT_STATS)
        for key, hook in list(host._forward_pre_hooks.items()):
            if hook is _observe:
                del host._forward_pre_hooks[key]
                host._forward_pre_hooks_with_kwargs.pop(key, None)
    return moments


def _leaf(slot: Slot) -> str:
    return slot.key.replace(".", "_")


def _observe(host: nn.Module, positional: tuple[Any, ...], keywords: dict[str, Any]) -> None:
    # A plain function: deep copies of the hook must find the statistics of the copied module.
    for moments in getattr(host, INPUT_STATS).values():
        moments.observe(host, positional, keywords)
