"""Where codes live: codebook layers, coded parameters, and the slots that they serve."""

from __future__ import annotations

from torch import nn

from vq_plugin.nn import shipped as _shipped
from vq_plugin.nn.coded import CodedWeight, Memory
from vq_plugin.nn.conv import CodebookConv1d, CodebookConv2d, CodebookConv3d
from vq_plugin.nn.embedding import CodebookEmbedding
from vq_plugin.nn.layer import CodebookLayer
from vq_plugin.nn.linear import CodebookLinear
from vq_plugin.nn.parameter import CodedParameter, coded_parameters, hold_coded
from vq_plugin.nn.slots import (
    Slot,
    SlotKind,
    find_slots,
    layer_slot,
    other_parameters,
    register_slot,
    registered_slots,
    slot_kinds,
    slot_names,
)
from vq_plugin.nn.view import View

del _shipped


def layer_types() -> dict[str, type[nn.Module]]:
    """The classes of modules that have slots, by their names."""
    return {owner.__name__: owner for owner in registered_slots() if isinstance(owner, type)}


def coded_weights(model: nn.Module) -> dict[str, CodedWeight]:
    """The holders of coded weights in a model, by the names of their slots.

    A module that is used under two names counts once, under the first.
    """
    found: dict[str, CodedWeight] = {}
    for name, module in model.named_modules():
        if isinstance(module, CodebookLayer):
            found[name] = module
        for parameter, coded in coded_parameters(module).items():
            found[next(slot_names([name], module, parameter))] = coded
    return found


__all__ = [
    "CodebookConv1d",
    "CodebookConv2d",
    "CodebookConv3d",
    "CodebookEmbedding",
    "CodebookLayer",
    "CodebookLinear",
    "CodedParameter",
    "CodedWeight",
    "Memory",
    "Slot",
    "SlotKind",
    "View",
    "coded_parameters",
    "coded_weights",
    "find_slots",
    "hold_coded",
    "layer_slot",
    "layer_types",
    "other_parameters",
    "register_slot",
    "registered_slots",
    "slot_kinds",
]
