"""Compressed weights in the places of float ones, in a copy of a model or in the model itself."""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Mapping

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import CodebookLayer, CodedParameter, Slot, View, hold_coded
from vq_plugin.nn.parameter import own_class
from vq_plugin.nn.slots import SOURCES
from vq_plugin.select import slots_by_any_name
from vq_plugin.ties import sharing

# Where torch keeps hooks, and which of them take keyword arguments or always run.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)


def assemble(
    model: nn.Module, weights: Mapping[str, CodebookWeight], ties: Mapping[str, str] | None = None
) -> nn.Module:
    """A copy of a model with compressed weights in it, which are by the names of slots.

    ``ties`` has the names of further slots, each with the name in ``weights`` whose codes and
    codebooks it shares; ``None`` is for those that share its float weight. ``ValueError`` names a
    slot that cannot take its weight.
    """
    layers, parameters = _holders(model, weights, ties)
    # A memo that knows the replaced layers copies everything but them, and puts them in place.
    memo = _own_values(model) | _empty_mappings(model)
    memo.update((id(module), layer) for module, layer in layers.items())
    small: nn.Module = copy.deepcopy(model, memo)
    for slot, coded, shift in parameters:
        module = memo[id(slot.module)]
        assert isinstance(module, nn.Module)
        _hold(slot, coded, shift, module)
    return small


def swap(model: nn.Module, weights: Mapping[str, CodebookWeight]) -> nn.Module:
    """Puts compressed weights into a model itself, as hosts do that convert in place.

    Gives the model, or the codebook layer if it is a bare layer.
    """
    layers, parameters = _holders(model, weights, None)
    for slot, coded, shift in parameters:
        _hold(slot, coded, shift, slot.module)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and module in layers:
            model.set_submodule(name, layers[module])
    return layers.get(model, model)


def _holders(
    model: nn.Module, weights: Mapping[str, CodebookWeight], ties: Mapping[str, str] | None
) -> tuple[dict[nn.Module, CodebookLayer], list[tuple[Slot, CodedParameter, Tensor | None]]]:
    """Codebook layers by the float layers whose places they take; coded parameters, bias shifts."""
    if ties is None:
        owners = sharing(model)
        ties = {slot.name: name for name in weights for slot in owners[name] if slot.name != name}
    slots = slots_by_any_name(model)
    # A slot of several names has one holder.
    holders: dict[tuple[int, str], CodebookLayer | CodedParameter] = {}
    layers: dict[nn.Module, CodebookLayer] = {}
    parameters: list[tuple[Slot, CodedParameter, Tensor | None]] = []
    for name, first in {**{name: name for name in weights}, **ties}.items():
        slot, owner = slots[name], slots[first]
        key = (id(slot.module), slot.parameter)
        if key in holders:
            continue
        try:
            seen = None if name == first else owner.view
            holder = holders[key] = holder_of(slot, weights[first], seen)
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        shift = weights[first].bias_shift
        if name != first:
            holder.share(holders[id(owner.module), owner.parameter])
            # A bias of its own, which calibration has not seen.
            shift = None
        if isinstance(holder, CodebookLayer):
            layers[slot.module] = holder
        else:
            parameters.append((slot, holder, shift))
    for module, layer in layers.items():
        for kind in _HOOKS:
            getattr(layer, kind).update(getattr(module, kind))
        layer._is_full_backward_hook = module._is_full_backward_hook
        # Those that rebuild the float weight have nothing left to do.
        drop_weight_hooks(layer, "weight")
    return layers, parameters


def holder_of(
    slot: Slot, small: CodebookWeight, view: View | None = None
) -> CodebookLayer | CodedParameter:
    """What holds a compressed weight in the place of a slot's; ``ValueError`` if shapes differ.

    ``view`` is between the parameter and that weight, if not the slot's: another slot that has the
    same parameter may see it in another order.
    """
    view = view or slot.view
    if slot.layer is not None and view == slot.view:
        return slot.layer(slot.module, small)
    if view.shape != small.shape:
        raise ValueError(
            f"the codebook weight has shape {small.shape}, the layer's is {view.shape}"
        )
    return CodedParameter(small, view, trains=slot.value.requires_grad)


def _hold(slot: Slot, coded: CodedParameter, shift: Tensor | None, module: nn.Module) -> None:
    if shift is not None and slot.bias is not None:
        bias = getattr(module, slot.bias)
        bias.data += shift.to(bias)
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


def drop_weight_hooks(module: nn.Module, parameter: str) -> bool:
    """Removes hooks that compute a weight, as pruning has; says whether there were any."""
    found = False
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod):
            computes = hook._tensor_name
        elif isinstance(hook, WeightNorm | SpectralNorm):
            computes = hook.name
        else:
            continue
        if computes == parameter:
            del module._forward_pre_hooks[key]
            found = True
    return found


def _own_values(model: nn.Module) -> dict[int, object]:
    """Copies of tensors that deepcopy refuses: weights that pruning computed with gradients.

    Recurrent modules list theirs.
    """
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in (*vars(module).values(), *vars(module).get("_flat_weights", ()))
        if isinstance(value, Tensor) and not value.is_leaf
    }


def _empty_mappings(model: nn.Module) -> dict[int, object]:
    """Copies of what a module has a dozen of, for hooks: deepcopy would spend its time on them."""
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict) and not value
    }
