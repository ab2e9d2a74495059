"""Schemes as the ``QConfigMapping`` of quantization-aware training."""

from __future__ import annotations

from torch import nn
from torch.ao.quantization import QConfigMapping
from torch.ao.quantization.fx.tracer import QuantizationTracer

from vq_plugin.hosting.plan import plans
from vq_plugin.nn import Slot
from vq_plugin.select import Schemes, slots_by_name
from vq_plugin.slot_fit import check_slot
from vq_plugin.torch_ao.backend import LAYERS, modules_around
from vq_plugin.torch_ao.mapping import copied
from vq_plugin.torch_ao.qconfig import CodebookFakeQuantize, plan_qconfig


def get_qat_qconfig_mapping(
    model: nn.Module, schemes: Schemes, base: QConfigMapping | None = None, *, seed: int = 0
) -> QConfigMapping:
    """Tells ``prepare_qat_fx`` which layers learn to be codebook layers.

    It takes the model, unlike :func:`get_qconfig_mapping`: for training the host goes by exact
    names, hence patterns are resolved here, and what cannot be trained is an error before the
    training.

    Args:
        model: Float model; it is not changed.
        schemes: One scheme for every layer that can take it, or patterns to schemes, as in
            :func:`vq_plugin.compress`; ``None`` leaves a layer to ``base``.
        base: The mapping for everything that the schemes leave, such as
            ``get_default_qat_qconfig_mapping("x86")``; without it that stays float. Not changed.
        seed: Seed of the fits that training starts from.

    Returns:
        A mapping for ``prepare_qat_fx``, together with :func:`get_backend_config`.

    Raises:
        TypeError: If a pattern, a scheme or ``base`` is of the wrong type.
        ValueError: If a pattern matches nothing, a layer cannot be compressed or cannot be
            trained by torch.ao, or layers that share a weight would get different schemes.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization.quantize_fx import convert_fx, prepare_qat_fx
        >>> from vq_plugin.torch_ao import check_converted, get_backend_config
        >>> model, schemes = nn.Sequential(nn.Linear(64, 32)).train(), vq.PQ(k=16, dim=4)
        >>> backend, batch = get_backend_config(), torch.randn(8, 64)
        >>> mapping = get_qat_qconfig_mapping(model, schemes)
        >>> prepared = prepare_qat_fx(model, mapping, (batch,), backend_config=backend)
        >>> optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
        >>> prepared(batch).square().mean().backward()
        >>> optimizer.step()
        >>> small = check_converted(convert_fx(prepared.eval(), backend_config=backend), schemes)
        >>> type(small.get_submodule("0")).__name__
        'CodebookLinear'
    """
    mapping = copied(base)
    by_name = plans(model, schemes, seed)
    slots = slots_by_name(model, by_name)
    for name, plan in by_name.items():
        _check_trains(model, slots[name], plan.name)
        mapping.set_module_name(name, plan_qconfig(plan, CodebookFakeQuantize))
    return mapping


def _check_trains(model: nn.Module, slot: Slot, first: str | None) -> None:
    """Raises ``ValueError`` for a layer that training would be lost on."""
    name, module = slot.name, slot.module
    check_slot(slot)
    if not name:
        raise ValueError("torch.ao trains layers inside a model only: wrap it in nn.Sequential")
    leave = f"leave it with {{{name!r}: None}}"
    outer = _untraced(model, name)
    if outer is not None:
        kind = type(model.get_submodule(outer)).__name__
        raise ValueError(
            f"layer {name!r}: FX does not trace into {outer!r} ({kind}), and what is inside would "
            f"not be converted; {leave}"
        )
    if type(module) not in LAYERS:
        raise ValueError(
            f"layer {name!r} is {type(module).__name__}: torch.ao trains plain torch.nn layers "
            f"only; {leave}"
        )
    if "weight" not in module._parameters:
        raise ValueError(
            f"layer {name!r}: its weight is computed from other parameters; make pruning permanent "
            f"with torch.nn.utils.prune.remove, or {leave}"
        )
    if isinstance(module, nn.Embedding) and module.max_norm is not None:
        raise ValueError(
            f"layer {name!r}: max_norm={module.max_norm} rewrites the weight as it runs; set it to "
            f"None, or {leave}"
        )
    if first != name and any(
        isinstance(model.get_submodule(n), nn.Embedding) for n in (name, first or "")
    ):
        raise ValueError(
            f"layer {name!r} shares the weight of {first!r}, and torch.ao gives an embedding that "
            f"it trains a weight of its own; leave both with {{{first!r}: None, {name!r}: None}}"
        )


def _untraced(model: nn.Module, name: str) -> str | None:
    """The first module around a layer that FX takes as a whole."""
    tracer = QuantizationTracer([], [])
    for outer in modules_around(name):
        module = model.get_submodule(outer)
        # Lists are never called.
        called = not isinstance(module, nn.ModuleList | nn.ModuleDict)
        if called and tracer.is_leaf_module(module, outer):
            return outer
    return None
