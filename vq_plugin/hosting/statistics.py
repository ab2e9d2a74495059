"""What calibration gathers of the inputs of layers, between a host's two calls.

A layer holds its statistics itself, as a submodule and a hook of its own: they survive deep copies
and are part of the ``state_dict``, as hosts expect of observers.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping

from torch import nn

from vq_plugin.fit.output.moments import Moments
from vq_plugin.importance import (
    INPUT_STATS,
    InputMoments,
    attach_moments,
    detach_moments,
    named_moments,
)


def attach_statistics(layers: Iterable[nn.Module]) -> list[nn.Module]:
    """Lets float layers gather statistics, in place; those that had not done so yet."""
    fresh = [layer for layer in layers if not hasattr(layer, INPUT_STATS)]
    for layer in fresh:
        attach_moments(layer)
    return fresh


def detach_statistics(model: nn.Module, but: Iterable[nn.Module] = ()) -> None:
    """Takes the statistics off all layers of a model, in place, ``but`` some."""
    kept = set(but)
    for module in list(model.modules()):
        if module not in kept:
            detach_moments(module)


def gathered_moments(
    layers: Mapping[str, nn.Module], *, required: bool = True
) -> dict[str, Moments]:
    """What the fits want to know of layers, from their statistics.

    Args:
        layers: Float layers by name; those without statistics get no moments.
        required: Whether it is an error if no layer at all has seen an input.

    Raises:
        ValueError: If calibration did not reach such a layer, or its inputs were not finite; the
            message names it.
    """
    found = {name: getattr(layer, INPUT_STATS, None) for name, layer in layers.items()}
    gathered = {name: own for name, own in found.items() if isinstance(own, InputMoments)}
    if not required and not any(statistics.count > 0 for statistics in gathered.values()):
        return {}
    return {name: named_moments(name, layers[name], own) for name, own in gathered.items()}


def shallow_copy(layer: nn.Module) -> nn.Module:
    """A module that shares with ``layer`` what statistics leave alone: all but hooks and children.

    For hosts whose prepared model shares layers with the user's. ``copy.copy`` refuses
    parametrized layers.
    """
    copied: nn.Module = object.__new__(type(layer))
    vars(copied).update(vars(layer))
    copied._modules = dict(layer._modules)
    copied._forward_pre_hooks = OrderedDict(layer._forward_pre_hooks)
    copied._forward_pre_hooks_with_kwargs = OrderedDict(layer._forward_pre_hooks_with_kwargs)
    return copied
