"""Codebook layers as nodes of the domain ``vq_plugin`` in ONNX, which run from their codes.

A node's operator is in the library of :func:`vq_plugin.onnxruntime_library`. What it computes is
also in the file, as a function of standard operators under the same name: a runtime that has no
such operator puts the function in its place. Functions hold shapes, so layers of other shapes have
functions of their own, told apart by their ``overload`` (ONNX IR version 10).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import onnx
import torch
from onnx import helper
from torch import Tensor, nn

from vq_plugin.export.native_definitions import INPUTS, definition
from vq_plugin.export.native_layers import has_kernel
from vq_plugin.nn import CodebookEmbedding
from vq_plugin.ops.convolution import conv_fake
from vq_plugin.ops.rounding import rounded
from vq_plugin.schemes import Geometry

DOMAIN = "vq_plugin"
VERSION = 1
# The least that has overloads of functions, and the least whose Cast takes UINT4.
IR_VERSION, OPSET = 10, 21


def add_definitions(model: onnx.ModelProto, layers: Mapping[str, Geometry]) -> None:
    """Adds the definitions of the nodes of :func:`decompositions`, once for equal ones.

    Args:
        model: Changed in place; it has at least opset 21.
        layers: How the weights are cut whose codes are the values of these names.
    """
    (opset,) = (each.version for each in model.opset_import if each.domain == "")
    nodes = [node for node in model.graph.node if node.domain == DOMAIN]
    for node in nodes:
        define(model, node, definition(node, layers[node.input[1]], opset))
    if nodes:
        model.ir_version = max(model.ir_version, IR_VERSION)


def define(model: onnx.ModelProto, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    """Adds a node's definition to its model, or finds the same one there.

    Args:
        model: Gets the function; its opset of standard operators is the function's.
        node: Of the domain ``vq_plugin``; gets the function's ``overload``.
        nodes: The body, from :data:`INPUTS` to ``output``.
    """
    others = [f for f in model.functions if (f.domain, f.name) == (DOMAIN, node.op_type)]
    for other in others:
        if list(other.node) == nodes:
            node.overload = other.overload
            return
    node.overload = str(len(others))
    standard = [opset for opset in model.opset_import if opset.domain == ""]
    function = helper.make_function(
        *(DOMAIN, node.op_type, INPUTS, ["output"], nodes, standard),
        attributes=sorted(attribute.name for attribute in node.attribute),
        overload=node.overload,
    )
    model.functions.append(function)


def look_up_by_nodes(model: nn.Module) -> None:
    """Has embeddings of a plain model that :func:`has_kernel` knows be nodes in its program."""
    for module in model.modules():
        if type(module) is CodebookEmbedding and has_kernel(module):
            module.__class__ = _LookedUp


class _LookedUp(CodebookEmbedding):
    """An embedding whose rows come from a node."""

    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Embedding``."""
        vectors = torch.onnx.ops.symbolic(
            f"{DOMAIN}::CodebookEmbedding",
            [input.long(), self._codes, self.codebooks, self.scale],
            {"embedding_dim": self.embedding_dim, "group": self.geometry.group or 0},
            dtype=torch.float32,
            shape=(*input.shape, self.embedding_dim),
            version=VERSION,
        )
        return self._padded(vectors, input)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """For ``ExportedProgram.run_decompositions``: operators of torch as nodes of ONNX.

    Layers are those of :func:`has_kernel`. Definitions are added by :func:`add_definitions`, once
    the program is a model of ONNX.
    """
    linear, conv = torch.ops.vq.codebook_linear, torch.ops.vq.codebook_conv
    return {
        linear.default: _linear_node,
        linear.inference: _linear_node,
        linear.pointwise: _pointwise_node,
        conv.default: _conv_node,
        conv.inference: _conv_node,
    }


def _pointwise_node(input: Tensor, *rest: Any) -> Tensor:
    return _linear_node(input.mT, *rest).mT


def _linear_node(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    along_out: bool,
    group: int,
    codebook_dtype: torch.dtype,
    precision: int,
) -> Tensor:
    attributes = {
        "out_features": out_features,
        "along_out": int(along_out),
        "group": group,
    }
    shape = (*input.shape[:-1], out_features)
    weight = (codes, codebooks, scale)
    return _node(
        "CodebookLinear", input, weight, bias, codebook_dtype, precision, attributes, shape
    )


def _conv_node(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    codebook_dtype: torch.dtype,
    precision: int,
) -> Tensor:
    attributes = {
        "out_channels": out_channels,
        "kernel_shape": kernel_size,
        "strides": stride,
        "padding": padding,
        "dilations": dilation,
        "group": groups,
    }
    settings = (out_channels, kernel_size, stride, padding, dilation, groups)
    shape = tuple(conv_fake(input, codes, codebooks, scale, bias, *settings).shape)
    weight = (codes, codebooks, scale)
    return _node("CodebookConv", input, weight, bias, codebook_dtype, precision, attributes, shape)


def _node(
    name: str,
    input: Tensor,
    weight: tuple[Tensor, Tensor, Tensor | None],
    bias: Tensor | None,
    codebook_dtype: torch.dtype,
    precision: int,
    attributes: dict[str, Any],
    shape: tuple[int, ...],
) -> Tensor:
    codes, codebooks, scale = weight
    given = {**attributes, "precision": precision}
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{name}",
        [
            *(input, codes, rounded(codebooks, codebook_dtype)),
            *(None if scale is None else rounded(scale, codebook_dtype), bias),
        ],
        given,
        dtype=torch.float32,
        shape=shape,
        version=VERSION,
    )
