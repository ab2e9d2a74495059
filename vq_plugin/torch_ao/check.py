"""Every silent no-op of the host, as an error."""

from __future__ import annotations

from collections.abc import Callable

from torch import nn
from torch.ao.nn import qat, quantized
from torch.ao.nn.quantized import reference
from torch.fx import GraphModule, Node
from torch.nn import functional

from vq_plugin.nn import CODEBOOK_LAYERS, CodebookLayer
from vq_plugin.select import Schemes, as_patterns, select
from vq_plugin.torch_ao.fused import split_fused

_QUANTIZED: dict[type[nn.Module], tuple[type[nn.Module], ...]] = {
    nn.Linear: (quantized.Linear, reference.Linear),
    nn.Conv1d: (quantized.Conv1d, reference.Conv1d),
    nn.Conv2d: (quantized.Conv2d, reference.Conv2d),
    nn.Conv3d: (quantized.Conv3d, reference.Conv3d),
    nn.Embedding: (quantized.Embedding, reference.Embedding),
}

# Left where convert did not reach what training had prepared.
_TRAINED: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: qat.Linear,
    nn.Conv1d: qat.Conv1d,
    nn.Conv2d: qat.Conv2d,
    nn.Conv3d: qat.Conv3d,
    nn.Embedding: qat.Embedding,
}

_FUNCTIONAL: dict[Callable[..., object], type[nn.Module]] = {
    functional.linear: nn.Linear,
    functional.conv1d: nn.Conv1d,
    functional.conv2d: nn.Conv2d,
    functional.conv3d: nn.Conv3d,
    functional.embedding: nn.Embedding,
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
    functions: dict[str, Node] = {}
    if isinstance(converted, GraphModule):
        split_fused(converted)
        functions = _functional_layers(converted)
    chosen = select(_float_twin(converted, functions), _layer_patterns(schemes))
    modules = dict(converted.named_modules())
    problems = []
    for name, scheme in chosen.items():
        module = modules.get(name)
        if not isinstance(module, CodebookLayer):
            why = _why_not(converted, name, module, functions.get(name))
            problems.append(f"{name!r}: asked for {scheme} but {why}")
        elif module.scheme != scheme:
            problems.append(f"{name!r}: asked for {scheme} but it has {module.scheme}; {_SAME}")
    for name, module in modules.items():
        if isinstance(module, CodebookLayer) and name not in chosen:
            problems.append(f"{name!r}: not asked for but it has {module.scheme}; {_SAME}")
    if problems:
        raise ValueError("torch.ao did not do what was asked for:\n  " + "\n  ".join(problems))
    return converted


_SAME = "give check_converted the schemes that prepare got"


def _layer_patterns(schemes: Schemes) -> Schemes:
    """Without what a converted model cannot match: other modules are folded away or fused."""
    return {
        pattern: scheme
        for pattern, scheme in as_patterns(schemes).items()
        if scheme is not None or isinstance(pattern, str) or _is_layer_class(pattern)
    }


def _is_layer_class(kind: type[nn.Module]) -> bool:
    return any(issubclass(base, kind) or issubclass(kind, base) for base in CODEBOOK_LAYERS)


def _float_type(module: nn.Module) -> type[nn.Module] | None:
    """The float layer that a layer was, or is."""
    for base, layer in CODEBOOK_LAYERS.items():
        if isinstance(module, (layer, _TRAINED[base], *_QUANTIZED[base])):
            return None if isinstance(module, quantized.EmbeddingBag) else base
    return None


def _float_twin(converted: nn.Module, functions: dict[str, Node]) -> nn.Module:
    """The converted model with empty float layers where layers are or were.

    ``select`` then decides by names and classes, as it does for ``compress``.
    """
    twins: dict[nn.Module, nn.Module] = {}

    def twin_of(module: nn.Module) -> nn.Module:
        if module not in twins:
            kind = _float_type(module) or type(module)
            twins[module] = _empty(kind)
            if kind is type(module):
                for name, child in module.named_children():
                    twins[module].add_module(name, twin_of(child))
        return twins[module]

    root = twin_of(converted)
    for name, node in functions.items():
        assert callable(node.target)
        root.set_submodule(name, _empty(_FUNCTIONAL[node.target]))
    return root


def _empty(kind: type[nn.Module]) -> nn.Module:
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    return module


def _functional_layers(converted: GraphModule) -> dict[str, Node]:
    """Layers that the graph calls as functions, by the name of the layer or of its weight."""
    found = {}
    for node in converted.graph.nodes:
        if node.op != "call_function" or node.target not in _FUNCTIONAL:
            continue
        weight = node.args[1] if len(node.args) > 1 else node.kwargs.get("weight")
        if not isinstance(weight, Node) or weight.op != "get_attr":
            continue
        owner, _, leaf = str(weight.target).rpartition(".")
        if type(converted.get_submodule(owner)) is nn.Module or not owner:
            found[owner if owner and leaf == "weight" else str(weight.target)] = node
    return found


def _why_not(
    converted: nn.Module, name: str, module: nn.Module | None, function: Node | None
) -> str:
    if function is not None:
        called = getattr(function.target, "__name__", function.target)
        return (
            f"it runs as the function {called}, and torch.ao replaces modules only: make it a "
            f"plain torch.nn layer inside the model, leave it with {{{name!r}: None}}, or use "
            "vq_plugin.compress"
        )
    assert module is not None
    if not name:
        return "torch.ao replaces layers inside a model only: wrap it in nn.Sequential"
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
    if type(module) not in CODEBOOK_LAYERS:
        return f"it is still {kind}: torch.ao replaces plain torch.nn layers only"
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
    parts = name.split(".")
    outer = (".".join(parts[:count]) for count in range(1, len(parts)))
    return next((path for path in outer if path in called), None)
