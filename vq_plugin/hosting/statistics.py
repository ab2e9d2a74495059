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
    """Lets layers gather statistics of their inputs; those that do so already go on.

    Args:
        layers: Float layers; changed in place.

    Returns:
        Those that had not done so yet.
    """
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


def gathered_moments(layers: Mapping[str, nn.Module]) -> dict[str, Moments]:
    """What the fits want to know of layers, from their statistics.

    Args:
        layers: Float layers by name.

    Returns:
        Moments by name, of the layers that have statistics.

    Raises:
        ValueError: If calibration did not reach such a layer, or its inputs were not finite; the
            message names it.
    """
    statistics = {name: getattr(layer, INPUT_STATS, None) for name, layer in layers.items()}
    return {
        name: named_moments(name, layers[name], gathered)
        for name, gathered in statistics.items()
        if isinstance(gathered, InputMoments)
    }


def calibrated(layers: Iterable[nn.Module]) -> bool:
    """Whether statistics of any of the layers have seen an input."""
    statistics = [getattr(layer, INPUT_STATS, None) for layer in layers]
    return any(isinstance(found, InputMoments) and found.count > 0 for found in statistics)


def shallow_copy(layer: nn.Module) -> nn.Module:
    """A module that shares everything but its hooks and the list of its children with ``layer``.

    For hosts whose prepared model shares layers with the user's, which must not get statistics.
    ``copy.copy`` refuses parametrized layers.
    """
    copied: nn.Module = object.__new__(type(layer))
    vars(copied).update(vars(layer))
    copied._modules = dict(layer._modules)
    copied._forward_pre_hooks = OrderedDict(layer._forward_pre_hooks)
    copied._forward_pre_hooks_with_kwargs = OrderedDict(layer._forward_pre_hooks_with_kwargs)
    return copied
