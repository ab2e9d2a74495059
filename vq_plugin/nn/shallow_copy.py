"""Copies of modules that share what is large."""

from __future__ import annotations

from collections import OrderedDict

from torch import nn


def shallow_copy(layer: nn.Module) -> nn.Module:
    """A module that shares with ``layer`` all but its hooks and its children.

    For hosts whose prepared model shares layers with the user's. ``copy.copy`` refuses
    parametrized layers.
    """
    copied: nn.Module = object.__new__(type(layer))
    vars(copied).update(vars(layer))
    copied._modules = dict(layer._modules)
    copied._forward_pre_hooks = OrderedDict(layer._forward_pre_hooks)
    copied._forward_pre_hooks_with_kwargs = OrderedDict(layer._forward_pre_hooks_with_kwargs)
    return copied
