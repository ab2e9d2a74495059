"""The float layers of an exported graph, which has their weights and their operators only."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.fx import GraphModule, Node

from vq_plugin.nn import CodebookLayer

aten = torch.ops.aten

Kind: TypeAlias = type[nn.Module]
_KINDS: Mapping[Any, Kind] = {
    aten.linear.default: nn.Linear,
    aten.conv1d.default: nn.Conv1d,
    aten.conv1d.padding: nn.Conv1d,
    aten.conv2d.default: nn.Conv2d,
    aten.conv2d.padding: nn.Conv2d,
    aten.conv3d.default: nn.Conv3d,
    aten.conv3d.padding: nn.Conv3d,
    aten.embedding.default: nn.Embedding,
}


@dataclass(frozen=True)
class GraphLayer:
    """A node that computes what a float layer computes.

    Attributes:
        name: What the layer is called in the model, or its weight where it is no layer of its own.
        kind: The class of the float layer.
        node: The node.
        weight: The node of the weight, and ``input`` that of what the layer is given.
    """

    name: str
    kind: Kind
    node: Node
    weight: Node
    input: Node


def graph_layers(graph: GraphModule) -> list[GraphLayer]:
    """The float layers of a graph, in its order; one that is called twice is there twice."""
    layers: list[GraphLayer] = []
    named: dict[str, str] = {}
    for node in graph.graph.nodes:
        kind = _KINDS.get(node.target) if node.op == "call_function" else None
        if kind is None:
            continue
        first, second = node.args[:2]
        weight, value = (first, second) if kind is nn.Embedding else (second, first)
        # Weights that are computed are no layer's own.
        if not (isinstance(weight, Node) and weight.op == "get_attr" and isinstance(value, Node)):
            continue
        # A weight that others read as well has to stay what it is.
        if any(user.target not in _KINDS for user in weight.users):
            continue
        name = _name(node, kind, str(weight.target))
        if named.setdefault(name, str(weight.target)) != str(weight.target):
            name = str(weight.target)
        layers.append(GraphLayer(name, kind, node, weight, value))
    return layers


def _name(node: Node, kind: Kind, target: str) -> str:
    # A weight that is shared goes by one of its names: the layer's own is in the trace.
    path, cls = module_of(node)
    if cls == kind.__name__:
        return path
    owner, _, leaf = target.rpartition(".")
    return owner if owner and leaf == "weight" else target


def module_of(node: Node) -> tuple[str, str]:
    """Name and class of the module that a node was traced in."""
    stack = list(node.meta.get("nn_module_stack", {}).values())
    path, cls = stack[-1] if stack else ("", "")
    cls = cls if isinstance(cls, str) else cls.__qualname__
    return str(path).partition("@")[0].removeprefix("L['self']."), cls.rpartition(".")[2]


def float_twin(graph: GraphModule, layers: list[GraphLayer]) -> nn.Module:
    """Float layers, which share the parameters of a graph, under their names.

    What is coded already is in it as well. It computes nothing: it is what patterns are matched to.
    """
    twin = nn.Module()
    for name, module in graph.named_modules():
        if isinstance(module, CodebookLayer):
            _put(twin, name, module)
    known: set[str] = set()
    for layer in layers:
        if layer.name not in known:
            known.add(layer.name)
            _put(twin, layer.name, _float_layer(graph, layer))
    return twin


def put_layer(graph: GraphModule, name: str, layer: CodebookLayer) -> None:
    """Puts a codebook layer in the place of what a graph has under its name."""
    path, _, leaf = name.rpartition(".")
    owner = graph.get_submodule(path)
    # Where a weight is no layer's own, it goes, and the layer has its name.
    owner._parameters.pop(leaf, None)
    before = owner._modules.get(leaf)
    if before is layer:
        return
    if before is not None:
        # What else there is under that name.
        for store in ("_parameters", "_buffers", "_modules"):
            for key, value in getattr(before, store).items():
                if key not in ("weight", "bias", "weight_bias") and not hasattr(layer, key):
                    getattr(layer, store)[key] = value
    owner._modules[leaf] = layer


def _put(root: nn.Module, name: str, module: nn.Module) -> None:
    *path, leaf = name.split(".")
    for step in path:
        if step not in root._modules:
            root.add_module(step, nn.Module())
        root = root.get_submodule(step)
    root.add_module(leaf, module)


def _float_layer(graph: GraphModule, layer: GraphLayer) -> nn.Module:
    weight = _parameter(graph, layer.weight)
    schema = layer.node.target._schema.arguments  # type: ignore[union-attr]
    given = dict(zip((argument.name for argument in schema), layer.node.args, strict=False))
    given = {
        **{argument.name: argument.default_value for argument in schema},
        **given,
        **layer.node.kwargs,
    }
    bias = given.get("bias")
    made: nn.Module
    if layer.kind is nn.Embedding:
        padding = given["padding_idx"]
        made = nn.Embedding(
            weight.shape[0],
            weight.shape[1],
            padding_idx=None if padding == -1 else padding,
            scale_grad_by_freq=bool(given["scale_grad_by_freq"]),
            device="meta",
        )
    elif layer.kind is nn.Linear:
        made = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
    else:
        space, groups = weight.dim() - 2, given["groups"]
        padding = given["padding"]
        made = layer.kind(
            weight.shape[1] * groups,
            weight.shape[0],
            tuple(weight.shape[2:]),
            stride=_each(given["stride"], space),
            padding=padding if isinstance(padding, str) else _each(padding, space),
            dilation=_each(given["dilation"], space),
            groups=groups,
            bias=bias is not None,
            device="meta",
        )
    made.weight = weight
    if isinstance(bias, Node):
        made.bias = _parameter(graph, bias)
    return made.eval()


def _each(value: Any, space: int) -> tuple[int, ...]:
    values = tuple(value) if isinstance(value, list | tuple) else (value,)
    return values * space if len(values) == 1 else values


def _parameter(graph: GraphModule, node: Node) -> nn.Parameter:
    found = attribute(graph, str(node.target))
    return found if isinstance(found, nn.Parameter) else nn.Parameter(found, requires_grad=False)


def attribute(graph: GraphModule, target: str) -> Tensor:
    """The tensor that a node of a graph reads."""
    found: Any = graph
    for step in target.split("."):
        found = getattr(found, step)
    assert isinstance(found, Tensor)
    return found
