"""Activation-aware compression: what calibration adds to a prepared model."""

from __future__ import annotations

from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from vq_plugin.hosting.statistics import attach_statistics
from vq_plugin.nn import find_slots
from vq_plugin.nn.shallow_copy import shallow_copy
from vq_plugin.select import check_model
from vq_plugin.torch_ao.qconfig import CodebookFakeQuantize, plan_of


def observe_inputs(prepared: nn.Module) -> nn.Module:
    """Lets ``convert`` weigh errors by the inputs that layers meet during calibration.

    As :func:`vq_plugin.compress` does with ``calibration=...``. Run unlabelled data through the
    prepared model, in eval mode, between this call and ``convert``. The statistics are buffers
    of the prepared model: they are part of its ``state_dict`` and of its copies.

    For quantization-aware training, run the data between this call and the first training step:
    until then the model computes in float in eval mode. Layers go on gathering while they
    train, and ``torch.ao.quantization.disable_observer`` ends it.

    Args:
        prepared: What ``prepare_fx``, ``prepare_qat_fx`` or ``prepare`` returned; changed in place.
            Layers that it shares with the float model are copied first, weights aside.

    Returns:
        ``prepared``.

    Raises:
        ValueError: If no layer of it is to become a codebook layer.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization import prepare
        >>> from vq_plugin.torch_ao import assign_qconfigs
        >>> prepared = prepare(assign_qconfigs(nn.Sequential(nn.Linear(4, 2)), vq.PQ()))
        >>> _ = observe_inputs(prepared)(torch.ones(3, 4))
        >>> prepared[0].input_stats["weight"].total.tolist()
        [[3.0, 3.0, 3.0, 3.0]]
    """
    check_model(prepared)
    copies: dict[nn.Module, nn.Module] = {}
    trained = [
        (module, quantizer)
        for module in prepared.modules()
        if isinstance(quantizer := getattr(module, "weight_fake_quant", None), CodebookFakeQuantize)
    ]
    for layer, quantizer in trained:
        if quantizer.observe_inputs(layer):
            layer.register_forward_pre_hook(_observe, with_kwargs=True)
    for name, module in list(prepared.named_modules(remove_duplicate=False)):
        plan = plan_of(module)
        root = module[0] if isinstance(module, _FusedModule) else module
        if plan is not None and plan.scheme_for(root) is not None:
            prepared.set_submodule(name, _observed(module, copies))
    if not copies and not trained:
        raise ValueError(
            "no layer of the prepared model is to become a codebook layer: "
            "give get_qconfig_mapping(schemes) to prepare_fx, get_qat_qconfig_mapping(model, "
            "schemes) to prepare_qat_fx, or assign_qconfigs(model, schemes) to prepare, with "
            "patterns that match its layers"
        )
    return prepared


def _observe(layer: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
    # A plain function: deep copies of the hook must find the quantizer of the copied layer.
    quantizer = layer.weight_fake_quant
    assert isinstance(quantizer, CodebookFakeQuantize)
    quantizer.observe(layer, arguments, keywords)


def _observed(module: nn.Module, copies: dict[nn.Module, nn.Module]) -> nn.Module:
    if module not in copies:
        copied = copies[module] = shallow_copy(module)
        if isinstance(module, _FusedModule):
            copied._modules["0"] = _observed(module[0], copies)
        else:
            attach_statistics(find_slots(copied).values())
    return copies[module]
