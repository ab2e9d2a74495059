"""Compressed weights in the places of float ones, in a copy of a model or in the model itself."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.eval_mode import alone, paused
from vq_plugin.model_copy import Rebinding, copy_model, part_copies
from vq_plugin.nn import CodebookLayer, CodedParameter, Slot, View, hold_coded
from vq_plugin.nn.own_doing import take_over
from vq_plugin.nn.parameter import own_class
from vq_plugin.nn.recomputed import SOURCES, at_rest, drop_weight_hooks
from vq_plugin.select import slots_by_any_name
from vq_plugin.ties import owners_of

_Held = tuple[Slot, CodedParameter, Tensor | None]


# What is made in inference mode is never trained.
@torch.inference_mode(False)
@cpu_by_default()
def assemble(
    model: nn.Module, weights: Mapping[str, CodebookWeight], ties: Mapping[str, str] | None = None
) -> nn.Module:
    """A copy of a model with compressed weights in it, which are by the names of slots.

    ``ties`` has the names of further slots, each with the name in ``weights`` whose codes and
    codebooks it shares; ``None`` is for those that share its float weight. ``ValueError`` names a
    slot that cannot take its weight.
    """
    # Calls on other threads may have the same model in eval mode.
    with alone(model):
        layers, parameters = _holders(model, weights, ties)
        # A memo that knows the replaced layers copies everything but them, and puts them in place.
        memo: dict[int, object] = {id(slot.module): layer for slot, layer in layers}
        shared = shared_parameters(model)
        for slot, layer in layers:
            bias = slot.module._parameters.get("bias")
            if bias is not None and id(bias) not in shared:
                memo[id(bias)] = layer.bias
        small, copied = copy_around(model, memo)
        for slot, layer in layers:
            bias = slot.module._parameters.get("bias")
            if id(bias) in shared:
                layer.register_parameter("bias", copied(bias))
            take_over(layer, slot.module, slot.parameter, copied)
        for slot, coded, shift in parameters:
            module = memo[id(slot.module)]
            assert isinstance(module, nn.Module)
            _hold(slot, coded, shift, module)
        return small


def copy_around(
    model: nn.Module, memo: dict[int, object]
) -> tuple[nn.Module, Callable[[Any], Any]]:
    """A copy with other layers in the places of those that ``memo`` has by their ids.

    Beside it, what copies all else that those had. Modules that a call on another thread has in
    eval mode are training in the copy.
    """
    copied = copy_model(model, memo)
    for training in paused(model):
        place = memo.get(id(training))
        if isinstance(place, nn.Module):
            place.training = True
    return copied, part_copies(model, memo)


@torch.inference_mode(False)
@cpu_by_default()
def swap(model: nn.Module, weights: Mapping[str, CodebookWeight]) -> nn.Module:
    """Puts compressed weights into a model itself, as hosts do that convert in place.

    Gives the model, or the codebook layer if it is a bare layer.
    """
    layers, parameters = _holders(model, weights, None)
    places = {id(slot.module): layer for slot, layer in layers}
    shared = shared_parameters(model)
    for slot, layer in layers:
        if id(slot.module._parameters.get("bias")) in shared:
            layer.register_parameter("bias", slot.module._parameters["bias"])
        take_over(layer, slot.module, slot.parameter, Rebinding(places, places))
    for slot, coded, shift in parameters:
        _hold(slot, coded, shift, slot.module)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and id(module) in places:
            model.set_submodule(name, places[id(module)])
    return places.get(id(model), model)


def _holders(
    model: nn.Module, weights: Mapping[str, CodebookWeight], ties: Mapping[str, str] | None
) -> tuple[list[tuple[Slot, CodebookLayer]], list[_Held]]:
    """Codebook layers with the slots whose modules they replace; coded parameters, bias shifts."""
    slots = slots_by_any_name(model)
    if ties is None:
        owners = owners_of(dict.fromkeys(slots.values()))
        ties = {slot.name: name for name in weights for slot in owners[name] if slot.name != name}
    origins = {**{name: name for name in weights}, **ties}
    # A layer two of whose parameters are coded stays what it is.
    chosen = {(id(slot.module), slot.parameter) for slot in map(slots.__getitem__, origins)}
    several = {module for module, count in Counter(m for m, _ in chosen).items() if count > 1}
    shared = shared_parameters(model)
    # A slot of several names has one holder.
    holders: dict[tuple[int, str], CodebookLayer | CodedParameter] = {}
    layers: list[tuple[Slot, CodebookLayer]] = []
    parameters: list[_Held] = []
    for name, first in origins.items():
        slot, owner = slots[name], slots[first]
        key = (id(slot.module), slot.parameter)
        if key in holders:
            continue
        small = weights[first]
        if small.bias_shift is not None:
            # Calibration has not seen the bias of another; one that several have, each would move.
            bias = None if slot.bias is None else slot.module._parameters[slot.bias]
            if name != first or id(bias) in shared:
                small = replace(small, bias_shift=None)
        try:
            view = slot.view if name == first else owner.view
            holder = holders[key] = holder_of(slot, small, view, stays=key[0] in several)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"layer {slot.shown}: {error}") from error
        if name != first:
            holder.share(holders[id(owner.module), owner.parameter])
        if isinstance(holder, CodebookLayer):
            layers.append((slot, holder))
        else:
            parameters.append((slot, holder, small.bias_shift))
    return layers, parameters


def shared_parameters(model: nn.Module) -> set[int]:
    """Ids of the parameters that several modules have."""
    owned = (p for module in model.modules() for p in module._parameters.values())
    return {
        key for key, count in Counter(id(p) for p in owned if p is not None).items() if count > 1
    }


def holder_of(
    slot: Slot, small: CodebookWeight, view: View, *, stays: bool
) -> CodebookLayer | CodedParameter:
    """What holds a compressed weight in the place of a slot's; ``ValueError`` if shapes differ.

    ``view`` is between the parameter and that weight: another slot that has the same parameter may
    see it in another order. The module ``stays`` what it is even if a codebook layer could be it.
    """
    if not stays and view == slot.view:
        layer = slot.codebook_layer(small)
        if layer is not None:
            return layer
    if view.shape != small.shape:
        raise ValueError(
            f"the codebook weight has shape {small.shape}, the layer's is {view.shape}"
        )
    # As a table's rows are those of the weight.
    padding = (
        getattr(slot.module, "padding_idx", None) if slot.kind.looks_up and view.plain else None
    )
    zero = padding is not None and not bool(slot.value[padding].any())
    return CodedParameter(small, view, trains=slot.trains, padding=padding, zero=zero)


def _hold(slot: Slot, coded: CodedParameter, shift: Tensor | None, module: nn.Module) -> None:
    if shift is not None and slot.bias is not None:
        bias = getattr(module, slot.bias)
        bias.data += shift.to(bias)
    with at_rest(module):
        put_parameter(module, slot.parameter, getattr(module, slot.parameter).detach())
    hold_coded(module, slot.parameter, coded)


def put_parameter(module: nn.Module, parameter: str, value: Tensor) -> None:
    """Makes ``value`` an ordinary parameter of a module, whatever has computed it so far."""
    own_class(module)
    if parametrize.is_parametrized(module, parameter):
        parametrize.remove_parametrizations(module, parameter, leave_parametrized=True)
    if drop_weight_hooks(module, parameter):
        for suffix in SOURCES:
            module._parameters.pop(parameter + suffix, None)
            module._buffers.pop(parameter + suffix, None)
    trains = getattr(module, parameter).requires_grad
    if parameter not in module._parameters:
        delattr(module, parameter)
    module.register_parameter(parameter, nn.Parameter(value, requires_grad=trains))
