"""From a layer to those that take its outputs, neuron by neuron."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import fx, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd

from vq_plugin.factorize.layers import KernelBasis

# What treats every neuron by itself, and all alike; functions and methods of torch by name.
_ALONE = {
    "celu", "contiguous", "dropout", "dropout1d", "dropout2d", "dropout3d", "elu", "gelu",
    "hardshrink", "hardsigmoid", "hardswish", "hardtanh", "leaky_relu", "logsigmoid", "mish",
    "relu", "relu6", "selu", "sigmoid", "silu", "softplus", "softshrink", "softsign", "tanh",
    "tanhshrink",
}  # fmt: skip
_POOLS = {
    f"{kind}_pool{dims}d"
    for kind in ("avg", "max", "adaptive_avg", "adaptive_max")
    for dims in (1, 2, 3)
}
_MODULES = {name.replace("_", ""): name for name in _ALONE | _POOLS} | {"identity": "contiguous"}


class NoChainError(ValueError):
    """Outputs of a layer that go where its neurons cannot be merged."""


@dataclass(frozen=True)
class Chain:
    """A layer, and where its outputs go.

    Attributes:
        neurons: How many it has.
        norm: Name of the batch norm of its outputs, or ``None``.
        consumers: Names of the layers that take them.
        between: What stands between the layer, or its batch norm, and each of those, in order.
    """

    neurons: int
    norm: str | None
    consumers: tuple[str, ...]
    between: Mapping[str, tuple[fx.Node, ...]]


def find_chain(graph: fx.Graph, modules: Mapping[str, nn.Module], name: str) -> Chain:
    """The chain that starts at a layer; ``NoChainError`` says where it breaks."""
    producer = modules[name]
    if not _is_layer(producer):
        groups = " of several groups" * (getattr(producer, "groups", 1) > 1)
        raise NoChainError(f"a {type(producer).__name__}{groups} has no neurons to merge")
    nodes = [n for n in graph.nodes if n.op == "call_module" and modules[n.target] is producer]
    if len(nodes) != 1:
        raise NoChainError(f"it runs {len(nodes)} times in a pass, and must once")
    walk = _Walk(graph, modules, producer)
    walk.follow(nodes[0], flat=False, first=True)
    if not walk.between:
        raise NoChainError("nothing takes its outputs")
    return Chain(walk.neurons, walk.norm, tuple(walk.between), walk.between)


def _is_layer(module: nn.Module) -> bool:
    plain = isinstance(module, nn.Linear) or (
        _is_convolution(module) and not isinstance(module, _ConvTransposeNd)
    )
    return plain and getattr(module, "groups", 1) == 1


def _is_convolution(module: nn.Module) -> bool:
    """Also one as two, where a trace has that as one."""
    return isinstance(module, _ConvNd | KernelBasis)


def what_is(node: fx.Node, module: nn.Module | None) -> str:
    """The function that a node is, by the name that torch has for it; empty if it is another."""
    if module is None:
        kind = str(getattr(node.target, "__name__", node.target)).rstrip("_")
        return "flatten" if kind in ("flatten", "view", "reshape") and _flattens(node) else kind
    if isinstance(module, nn.Flatten):
        return "flatten" if (module.start_dim, module.end_dim) == (1, -1) else ""
    known = type(module).__module__.startswith("torch.nn.")
    return _MODULES.get(type(module).__name__.lower(), "") if known else ""


def is_pool(what: str) -> bool:
    """Whether the function of that name makes one place of several."""
    return what in _POOLS


class _Walk:
    """Follows outputs through what treats neurons alone."""

    def __init__(
        self, graph: fx.Graph, modules: Mapping[str, nn.Module], producer: nn.Module
    ) -> None:
        self.modules, self.producer = modules, producer
        self.neurons = len(producer.weight)  # type: ignore[arg-type]
        self.norm: str | None = None
        self.between: dict[str, tuple[fx.Node, ...]] = {}
        self._calls = [node.target for node in graph.nodes if node.op == "call_module"]

    def follow(
        self, node: fx.Node, *, flat: bool, first: bool = False, path: tuple[fx.Node, ...] = ()
    ) -> None:
        """Takes all users of a node; ``flat`` says that places were flattened."""
        for user in node.users:
            if user.op == "output":
                raise NoChainError("its outputs are outputs of the model")
            name = user.target if user.op == "call_module" else ""
            module = self.modules.get(str(name)) if name else None
            if isinstance(module, nn.Linear | _ConvNd | KernelBasis) and user.args[:1] == (node,):
                self._consume(str(name), module, flat, path)
            elif isinstance(module, _BatchNorm):
                self._normalize(str(name), module, first and len(node.users) == 1)
                self.follow(user, flat=flat)
            elif not _is_size(user):
                self.follow(user, flat=self._passes(user, module, flat), path=(*path, user))

    def _consume(self, name: str, module: Any, flat: bool, path: tuple[fx.Node, ...]) -> None:
        convolution = _is_convolution(self.producer)
        inputs = module.in_features if isinstance(module, nn.Linear) else module.in_channels
        fits = (
            flat and inputs % self.neurons == 0
            if convolution and isinstance(module, nn.Linear)
            else inputs == self.neurons and convolution == _is_convolution(module)
        )
        if not _is_layer(module) or not fits:
            raise NoChainError(f"{name!r}, a {type(module).__name__}, takes its outputs otherwise")
        if self._calls.count(name) > 1:
            raise NoChainError(f"{name!r} takes its outputs, and runs twice in a pass")
        self.between[name] = path

    def _normalize(self, name: str, norm: _BatchNorm, directly: bool) -> None:
        once = self._calls.count(name) == 1
        if not directly or not once or norm.num_features != self.neurons:
            raise NoChainError(f"batch norm {name!r} takes its outputs, but not first and alone")
        if norm.running_mean is None:
            raise NoChainError(f"batch norm {name!r} keeps no statistics")
        self.norm = name

    def _passes(self, user: fx.Node, module: nn.Module | None, flat: bool) -> bool:
        """Whether places are flat behind a node; ``NoChainError`` if it mixes neurons."""
        what = what_is(user, module)
        if what == "flatten" or (is_pool(what) and _is_convolution(self.producer) and not flat):
            return flat or what == "flatten"
        if what in _ALONE:
            return flat
        kind = what if module is None else type(module).__name__
        raise NoChainError(f"its outputs go into {kind!r}, which may mix neurons")


def _is_size(node: fx.Node) -> bool:
    """Whether it asks for the number of samples."""
    return node.op == "call_method" and node.target == "size" and node.args[1:] == (0,)


def _flattens(node: fx.Node) -> bool:
    """Whether all but the first dimension become one, however many they are."""
    sizes: Any = node.args[1:]
    if getattr(node.target, "__name__", node.target) == "flatten":
        return sizes in ((1,), (1, -1)) or (not sizes and node.kwargs == {"start_dim": 1})
    if len(sizes) == 1 and isinstance(sizes[0], tuple | list):
        sizes = tuple(sizes[0])
    return len(sizes) == 2 and sizes[1] == -1


class _Tracer(fx.Tracer):
    """One that takes some layers as they are."""

    def __init__(self, whole: type[nn.Module] | tuple[()]) -> None:
        super().__init__()
        self._whole = whole

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        return isinstance(m, self._whole) or super().is_leaf_module(m, module_qualified_name)


def traced(model: nn.Module, whole: type[nn.Module] | tuple[()] = ()) -> fx.Graph:
    """The graph of a model, layers of a kind ``whole``; ``ValueError`` says why there is none."""
    try:
        return _Tracer(whole).trace(model)
    except Exception as error:
        raise ValueError(
            f"torch.fx cannot trace the model ({type(error).__name__}: {error}), and hence nobody "
            "knows which layers take whose outputs: merge neurons of a part that it can trace"
        ) from error
