"""What ``quantize_`` calls for every module that it was asked for."""

from __future__ import annotations

import torch
from torch import nn
from torchao.quantization.transform_module import register_quantize_module_handler

from vq_plugin.hosting.fit import fit_gathered
from vq_plugin.hosting.statistics import attach_statistics, detach_statistics, gathered_moments
from vq_plugin.nn import CodebookLayer, Slot
from vq_plugin.nn.own_doing import take_over
from vq_plugin.replace import swap
from vq_plugin.torchao.call import Plans, Visit, plans_for
from vq_plugin.torchao.config import VQWeightOnlyConfig
from vq_plugin.torchao.trained import convert_prepared, prepare_layer, prepared_weight


@register_quantize_module_handler(VQWeightOnlyConfig)  # type: ignore[untyped-decorator]
@torch.inference_mode(False)
def compress_module(
    module: nn.Module, config: VQWeightOnlyConfig, *, parameter_name: str | None = None
) -> nn.Module:
    """Codes in the place of a module's weights; the module itself, changed in place.

    It stays the same object, of another class where a codebook layer serves it: the host drops what
    is returned for a model that is a bare layer, and replaces a module of two names under one.
    ``ValueError`` as :func:`vq_plugin.torchao.call.plans_for`, before anything is changed.
    """
    visit = Visit(module, parameter_name, config)
    plans = plans_for(visit)
    slots = visit.slots()
    if config.step == "prepare":
        _prepare(slots, plans)
    else:
        # A module of two names is done at the first.
        _convert(module, slots, plans)
    return module


def _prepare(slots: dict[str, Slot], plans: Plans) -> None:
    for name, slot in slots.items():
        if prepared_weight(slot.module) is not None:
            continue
        # What is computed from other parameters trains by these.
        if slot.layer is not None and "weight" in slot.module._parameters:
            prepare_layer(slot.module, plans[name])
        else:
            attach_statistics([slot])


def _convert(module: nn.Module, slots: dict[str, Slot], plans: Plans) -> None:
    held = {}
    for name, slot in slots.items():
        plan = plans[name]
        prepared = prepared_weight(slot.module)
        if prepared is not None:
            _become(slot.module, convert_prepared(slot.module, prepared))
        elif slot.layer is not None:
            layer = plan.convert(slot.module)
            assert isinstance(layer, CodebookLayer)
            _become(slot.module, layer)
        else:
            label = plan.name or ""
            moments = gathered_moments({label: slot}).get(label)
            held[name] = fit_gathered(label, slot.weight, plan.scheme, moments, plan.seed)
    if held:
        detach_statistics(module)
        swap(module, held)


def _become(module: nn.Module, layer: CodebookLayer) -> None:
    """Makes a float layer a codebook layer, in place; its bias stays the parameter that it is."""
    take_over(layer, module, "weight", lambda value: value)
    bias = module._parameters.get("bias")
    # One that was made in inference mode cannot be changed outside it.
    if bias is not None and layer.bias is not None and not bias.is_inference():
        bias.data.copy_(layer.bias.data)
        layer.register_parameter("bias", bias)
    vars(module).clear()
    module.__class__ = type(layer)
    vars(module).update(vars(layer))
