"""Every silent no-op of the host, as an error."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeAlias

from torch import nn
from torch.ao.nn import qat, quantized
from torch.fx import GraphModule, Node
from torch.nn import functional

from vq_plugin.hosting.check import check_schemes
from vq_plugin.nn import slot_kinds
from vq_plugin.select import Schemes, check_model
from vq_plugin.torch_ao.backend import LAYERS, REFERENCES, modules_around
from vq_plugin.torch_ao.fused import split_fused

# What the host makes of float layers, under their names.
_QUANTIZED = {kind: (getattr(quantized, kind.__name__), REFERENCES[kind]) for kind in LAYERS}
# Left where convert did not reach what training had prepared.
_TRAINED = {kind: getattr(qat, kind.__name__) for kind in LAYERS}

_FUNCTIONAL: dict[Callable[..., object], type[nn.Module]] = {
    getattr(functional, kind.__name__.lower()): kind for kind in LAYERS
}


def check_converted(converted: nn.Module, schemes: Schemes) -> nn.Module:
    """Makes sure that ``convert_fx`` or ``convert`` did what the schemes ask for.

    The host skips what it cannot do without a word; here every layer is held against the
    schemes. On the way, layers that FX fused with a ReLU get their own names back (``fc``, where
    FX has ``fc.0`` and ``fc.1``), so that files fit the float model; so do layers with batch norm
    that were left float in training, whose batch norm is folded.

    Args:
        converted: What the host returned; fused layers are taken apart in place.
        schemes: The schemes that ``get_qconfig_mapping``, ``get_qat_qconfig_mapping`` or
            ``assign_qconfigs`` got.

    Returns:
        ``converted``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing (the message has the nearest names), or a layer
            is float, int8 or of another scheme than asked for; the message names every such
            layer, and says why and what to do.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
        >>> from vq_plugin.torch_ao import get_backend_config, get_qconfig_mapping
        >>> model, schemes = nn.Sequential(nn.Linear(64, 32)).eval(), vq.PQ(k=16, dim=4)
        >>> backend, example = get_backend_config(), (torch.zeros(1, 64),)
        >>> prepared = prepare_fx(
        ...     model, get_qconfig_mapping(schemes), example, backend_config=backend
        ... )
        >>> small = check_converted(convert_fx(prepared, backend_config=backend), schemes)
        >>> type(small.get_submodule("0")).__name__
        'CodebookLinear'
    """
    check_model(converted)
    functions: dict[str, _Functional] = {}
    if isinstance(converted, GraphModule):
        split_fused(converted)
        functions = _functional_layers(converted)
    check_schemes(
        converted,
        schemes,
        host="torch.ao",
        float_type=_float_type,
        functions={name: kind for name, (kind, _) in functions.items()},
        why_not=lambda name: _why_not(converted, name, functions.get(name)),
    )
    return converted


def _float_type(module: nn.Module) -> type[nn.Module] | None:
    """The float layer that a layer of the host was, or is."""
    if isinstance(module, quantized.EmbeddingBag):
        return None
    kinds = (kind for kind in LAYERS if isinstance(module, (_TRAINED[kind], *_QUANTIZED[kind])))
    return next(kinds, None)


_Functional: TypeAlias = tuple[type[nn.Module], Node]


def _functional_layers(converted: GraphModule) -> dict[str, _Functional]:
    """Layers that the graph calls as functions, by the name of the layer or of its weight."""
    layers: dict[str, _Functional] = {}
    for node in converted.graph.nodes:
        if node.op == "get_attr":
            # Of a module that was traced into, the graph knows the class that it had.
            owner, _, leaf = str(node.target).rpartition(".")
            _, kind = node.meta.get("nn_module_stack", {}).get(owner, (owner, nn.Module))
            if any(slot.parameter == leaf for slot in slot_kinds(kind)):
                layers[owner] = kind, next(iter(node.users))
        if node.op != "call_function" or node.target not in _FUNCTIONAL:
            continue
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        owner, _, leaf = str(weight.target).rpartition(".")
        if type(converted.get_submodule(owner)) is nn.Module or not owner:
            name = owner if owner and leaf == "weight" else str(weight.target)
            layers[name] = _FUNCTIONAL[node.target], node
    return layers


def _why_not(converted: nn.Module, name: str, functional: _Functional | None) -> str:
    if functional is not None:
        target = functional[1].target
        called = getattr(target, "__name__", target)
        return (
            f"it runs as the function {called}, and torch.ao replaces modules only: make it a "
            f"plain torch.nn layer inside the model, leave it with {{{name!r}: None}}, or use "
            "vq_plugin.compress"
        )
    if not name:
        return "torch.ao replaces layers inside a model only: wrap it in nn.Sequential"
    module = converted.get_submodule(name)
    kind = type(module).__name__
    if isinstance(module, tuple(kind for kinds in _QUANTIZED.values() for kind in kinds)):
        return (
            f"torch.ao quantized it to int8 ({type(module).__module__}.{kind}): name it exactly "
            "in the schemes, and set no other qconfig for that name"
        )
    outer = _untraced(converted, name)
    if outer is not None:
        return (
            f"it is still {kind}: FX does not trace into {outer!r} "
            f"({type(converted.get_submodule(outer)).__name__}), leave it with "
            f"{{'re:{outer}[.].*': None}}, or use vq_plugin.compress"
        )
    if type(module) not in LAYERS:
        names = ", ".join(layer.__name__ for layer in LAYERS)
        return (
            f"it is still {kind}: torch.ao replaces plain torch.nn layers only, of these {names}; "
            f"leave it with {{{name!r}: None}}, or use vq_plugin.compress"
        )
    if isinstance(converted, GraphModule):
        return (
            f"it is still {kind}: give backend_config=get_backend_config() to prepare_fx and to "
            "convert_fx, and get_qconfig_mapping(schemes) to prepare_fx"
        )
    return (
        f"it is still {kind}: give assign_qconfigs(model, schemes) to prepare and "
        "mapping=get_eager_mapping() to convert"
    )


def _untraced(converted: nn.Module, name: str) -> str | None:
    """The module around ``name`` that the graph calls as a whole."""
    if not isinstance(converted, GraphModule):
        return None
    called = {str(node.target) for node in converted.graph.nodes if node.op == "call_module"}
    return next((path for path in modules_around(name) if path in called), None)
