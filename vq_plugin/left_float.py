"""Weights that stayed in float, and why."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.parametrize import type_before_parametrizations

from vq_plugin.checkpoint import rest_tensors
from vq_plugin.nn import CodedWeight, coded_weights, find_slots
from vq_plugin.nn.graphs import graph_hint
from vq_plugin.sizes import float_nbytes, stored_nbytes, weight_float_nbytes

# Of all bytes of a model's parameters: what is less is no surprise to anybody.
_SHARE = 0.01


@dataclass(frozen=True)
class FloatWeight:
    """A weight that stayed in float.

    Attributes:
        name: Its full name.
        nbytes: Its bytes.
        reason: Why it did.
        reachable: Whether a pattern such as ``"*"`` would have chosen it.
    """

    name: str
    nbytes: int
    reason: str
    reachable: bool


def left_float(model: nn.Module) -> tuple[FloatWeight, ...]:
    """The parameters of two dimensions or more that stayed in float, if above 1 % of the model.

    The largest first. What share of the model they are goes by the float32 sizes of all parameters,
    coded ones included.

    Example:
        >>> [weight.name for weight in left_float(nn.Sequential(nn.Linear(8, 8), nn.ReLU()))]
        ['0.weight']
    """
    slots = {(id(slot.module), slot.parameter) for slot in find_slots(model).values()}
    total = 0
    found: dict[int, FloatWeight] = {}
    counted: set[int] = set()
    for path, module in model.named_modules():
        if isinstance(module, CodedWeight) and id(module.codebooks) not in counted:
            counted.add(id(module.codebooks))
            total += weight_float_nbytes(module.geometry.shape)
        for name, value in module.named_parameters(recurse=False):
            if isinstance(module, CodedWeight) and name in ("codebooks", "scale"):
                continue
            if is_lazy(value) or id(value) in counted:
                continue
            counted.add(id(value))
            total += float_nbytes([value])
            if value.dim() < 2 or not value.is_floating_point():
                continue
            reachable = (id(module), name) in slots
            reason = (
                "no scheme was chosen for it"
                if reachable
                else f"a {type_before_parametrizations(module).__name__} has no slot {name!r}: "
                + (graph_hint(module) or "name it, or register it")
            )
            full = f"{path}.{name}" if path else name
            found[id(value)] = FloatWeight(full, value.nbytes, reason, reachable)
    large = (weight for weight in found.values() if weight.nbytes > _SHARE * total)
    return tuple(sorted(large, key=lambda weight: -weight.nbytes))


def share_of_file(model: nn.Module, weights: Iterable[FloatWeight]) -> float:
    """What part of a file of a compressed model some weights take, before codes are coded."""
    books = {id(each.codebooks): each.geometry.nbytes for each in coded_weights(model).values()}
    total = sum(books.values()) + stored_nbytes(rest_tensors(model).values())
    return sum(weight.nbytes for weight in weights) / max(total, 1)
