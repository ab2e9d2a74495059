"""Activation-aware compression: what calibration adds to a prepared model."""

from __future__ import annotations

import copy

from torch import Tensor, nn
from torch.ao.nn.intrinsic.modules.fused import _FusedModule

from vq_plugin.importance import InputMoments
from vq_plugin.torch_ao.plan import INPUT_STATS, observe
from vq_plugin.torch_ao.qconfig import plan_of


def observe_inputs(prepared: nn.Module) -> nn.Module:
    """Lets ``convert`` weigh errors by the inputs that layers meet during calibration.

    As :func:`vq_plugin.compress` does with ``calibration=...``. Run unlabelled data through the
    prepared model, in eval mode, between this call and ``convert``. The statistics are buffers
    of the prepared model: they are part of its ``state_dict`` and of its copies.

    Args:
        prepared: What ``prepare_fx`` or ``prepare`` returned; changed in place. Layers that it
            shares with the float model are copied first, weights aside.

    Returns:
        ``prepared``.

    Raises:
        ValueError: If no layer of it is to become a codebook layer.

    Example:
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization import prepare
        >>> from vq_plugin.torch_ao import assign_qconfigs
        >>> prepared = prepare(assign_qconfigs(nn.Sequential(nn.Linear(4, 2)), vq.PQ()))
        >>> _ = observe_inputs(prepared)(torch.ones(3, 4))
        >>> prepared[0].input_stats.total.tolist()
        [3.0, 3.0, 3.0, 3.0]
    """
    tensors = (*prepared.parameters(), *prepared.buffers())
    # One memo for all: the copies go on sharing weights and what convert will have fitted.
    memo: dict[int, object] = {id(tensor): tensor for tensor in tensors}
    observed = False
    for name, module in list(prepared.named_modules(remove_duplicate=False)):
        plan = plan_of(module)
        if plan is None or plan.scheme_for(_root(module)) is None:
            continue
        observed = True
        if not hasattr(_root(module), INPUT_STATS):
            prepared.set_submodule(name, _observed(module, memo))
    if not observed:
        raise ValueError(
            "no layer of the prepared model is to become a codebook layer: "
            "give get_qconfig_mapping(schemes) to prepare_fx, or assign_qconfigs(model, schemes) "
            "to prepare, with patterns that match its layers"
        )
    return prepared


def _root(module: nn.Module) -> nn.Module:
    """The layer with the weight: the first of the modules that the host fused."""
    if isinstance(module, _FusedModule):
        first: nn.Module = module[0]
        return first
    return module


def _observed(module: nn.Module, memo: dict[int, object]) -> nn.Module:
    own = copy.deepcopy(module, memo)
    layer = _root(own)
    if not hasattr(layer, INPUT_STATS):
        weight = layer.weight
        assert isinstance(weight, Tensor)
        layer.add_module(INPUT_STATS, InputMoments(layer).to(weight.device))
        layer.register_forward_pre_hook(observe)
    return own
