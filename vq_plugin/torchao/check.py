"""Every silent no-op of the host, as an error."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeVar

from torch import nn
from torch.fx import GraphModule
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig
from torchao.utils import TorchAOBaseTensor

from vq_plugin.hosting.check import check_schemes
from vq_plugin.select import Schemes, check_model
from vq_plugin.torchao.config import VQWeightOnlyConfig
from vq_plugin.torchao.graph import GraphLayer, graph_layers
from vq_plugin.torchao.trained import prepared_weight

M = TypeVar("M", bound=nn.Module)


def check_converted(converted: M, schemes: Schemes | AOBaseConfig) -> M:
    """Makes sure that ``quantize_`` or ``convert_pt2e`` did what the schemes ask for.

    ``quantize_`` takes Linear layers only where it is given no filter, and skips the rest without a
    word; a filter may match nothing. Here every weight that the schemes choose, as
    :func:`vq_plugin.compress` does, is held against what the model has.

    Args:
        converted: A model after ``quantize_``, or what ``convert_pt2e`` returned; not changed.
        schemes: One scheme for every weight, or patterns to schemes; ``None`` for those that stay
            float or are another config's. Or the config itself, with which ``quantize_`` was
            called: one that is not in an ``FqnToConfig`` asks for every weight.

    Returns:
        ``converted``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing (the message has the nearest names), or a weight
            is float, int8 or of another scheme than asked for; the message names every such
            weight, and says why and what to do.

    Example:
        >>> import torch
        >>> from torchao.quantization import quantize_
        >>> import vq_plugin as vq
        >>> from vq_plugin.torchao import VQWeightOnlyConfig
        >>> model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.Flatten(), nn.Linear(8, 8))
        >>> quantize_(model, VQWeightOnlyConfig(vq.KM(k=4)))
        >>> try:
        ...     check_converted(model, vq.KM(k=4))
        ... except ValueError as error:
        ...     print(str(error).splitlines()[1][:52])
          '0': asked for km(k=4) but it is still Conv2d: wit
    """
    check_model(converted)
    layers: dict[str, GraphLayer] = {}
    if isinstance(converted, GraphModule):
        layers = {layer.name: layer for layer in graph_layers(converted)}
    check_schemes(
        converted,
        _schemes(schemes),
        host="torchao",
        float_type=lambda _: None,
        functions={name: layer.kind for name, layer in layers.items()},
        why_not=lambda name: _why_not(converted, name, layers),
    )
    return converted


def _schemes(given: Schemes | AOBaseConfig) -> Schemes:
    if isinstance(given, VQWeightOnlyConfig):
        return given.layer_scheme
    if isinstance(given, FqnToConfig):
        inner: Mapping[str, object] = given.fqn_to_config
        return {
            nn.Linear if key == "_default" else key: (
                config.layer_scheme if isinstance(config, VQWeightOnlyConfig) else None
            )
            for key, config in inner.items()
        }
    schemes: Schemes = given
    return schemes


def _why_not(converted: nn.Module, name: str, layers: Mapping[str, GraphLayer]) -> str:
    if name in layers:
        return (
            f"it is still {layers[name].node.target}: give VQQuantizer these schemes, as the first "
            "of a ComposableQuantizer"
        )
    module = converted.get_submodule(name)
    kind = type(module).__name__
    weight = getattr(module, "weight", None)
    if isinstance(weight, TorchAOBaseTensor):
        return (
            f"it is {kind} with {type(weight).__name__}, by another config of torchao: leave it "
            f"with {{{name!r}: None}}, or give its name one config"
        )
    prepared = prepared_weight(module)
    if prepared is not None:
        return "it is only prepared: quantize_ with VQWeightOnlyConfig(..., step='convert')"
    if type(module) is nn.Linear:
        return f"it is still {kind}: filter_fn did not choose it, or the model was not quantized"
    return (
        f"it is still {kind}: without a filter quantize_ takes Linear only; choose it with "
        f"filter_fn=lambda module, name: isinstance(module, (nn.Linear, nn.{kind}))"
    )
