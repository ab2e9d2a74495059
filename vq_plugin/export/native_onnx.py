"""Codebook layers as nodes of the domain ``vq_plugin`` in ONNX, which run from their codes.

A node's operator is in the library of :func:`vq_plugin.onnxruntime_library`. What it computes is
also in the file, as a function of standard operators under the same name: a runtime that has no
such operator puts the function in its place. Functions hold shapes, so layers of other shapes have
functions of their own, told apart by their ``overload`` (ONNX IR version 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from vq_plugin.export.native_definitions import Weight, conv_definition, linear_definition
from vq_plugin.ops.convolution import conv_fake
from vq_plugin.ops.library import rounded
from vq_plugin.ops.packing import NIBBLES

DOMAIN = "vq_plugin"
VERSION = 1
# The least that has overloads of functions, and the least whose Cast takes UINT4.
IR_VERSION, OPSET = 10, 21

_INPUTS = ("input", "codes", "codebooks", "scale", "bias")


def complete(model: onnx.ModelProto) -> None:
    """Makes the nodes of :func:`decompositions` whole.

    Packed codes become ``UINT4``, and each node's definition is added to its model, once for equal
    ones.

    Args:
        model: Changed in place.

    Raises:
        ValueError: If the codes of a node are not in its model as a constant.
    """
    constants = {tensor.name: tensor for tensor in model.graph.initializer}
    types = {value.name: value for value in (*model.graph.value_info, *model.graph.input)}
    for node in model.graph.node:
        if node.domain != DOMAIN:
            continue
        codes = constants.get(node.input[1])
        if codes is None:
            raise ValueError(f"the codes of {node.name or node.output[0]!r} are no constant")
        packed = len(codes.dims) != 3
        if codes.data_type == TensorProto.INT32:
            # The same bytes: the lower half of a byte comes first, as it does in a dword.
            codes.data_type = TensorProto.UINT4
            codes.dims.append(NIBBLES)
            if codes.name in types:
                shaped = helper.make_tensor_type_proto(codes.data_type, codes.dims)
                types[codes.name].type.CopyFrom(shaped)
        given = {a.name: helper.get_attribute_value(a) for a in node.attribute}
        present = [bool(name) for name in node.input] + [False, False]
        describe = _conv if node.op_type == "CodebookConv" else _linear
        define(model, node, describe(given, packed=packed, scale=present[3], bias=present[4]))
    if all(opset.domain != DOMAIN for opset in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, VERSION))


def _linear(
    given: dict[str, Any], *, packed: bool, scale: bool, bias: bool
) -> list[onnx.NodeProto]:
    shape = (given["in_features"], given["out_features"])
    length, rows = shape[::-1] if given["along_out"] else shape
    books = tuple(given["codebook_shape"])
    weight = Weight(rows, length, books, given["group"], packed, bool(given["along_out"]))
    return linear_definition(weight, scale=scale, bias=bias)


def _conv(given: dict[str, Any], *, packed: bool, scale: bool, bias: bool) -> list[onnx.NodeProto]:
    channels, books = given["in_channels"] // given["group"], tuple(given["codebook_shape"])
    wide = -(-channels // books[4]) * books[4]
    length = math.prod(given["kernel_shape"]) * wide
    weight = Weight(given["out_channels"], length, books, packed=packed)
    return conv_definition(weight, channels, given, scale=scale, bias=bias)


def define(model: onnx.ModelProto, node: onnx.NodeProto, nodes: list[onnx.NodeProto]) -> None:
    """Adds a node's definition to its model, or finds the same one there.

    Args:
        model: Gets the function; its opset of standard operators is the function's.
        node: Of the domain ``vq_plugin``; gets the function's ``overload``.
        nodes: The body, from ``input``, ``codes``, ``codebooks``, ``scale`` and ``bias`` to
            ``output``.
    """
    others = [f for f in model.functions if (f.domain, f.name) == (DOMAIN, node.op_type)]
    for other in others:
        if list(other.node) == nodes:
            node.overload = other.overload
            return
    node.overload = str(len(others))
    standard = [opset for opset in model.opset_import if opset.domain == ""]
    function = helper.make_function(
        *(DOMAIN, node.op_type, _INPUTS, ["output"], nodes, standard),
        attributes=sorted(attribute.name for attribute in node.attribute),
        overload=node.overload,
    )
    model.functions.append(function)


def decompositions() -> dict[Any, Callable[..., Any]]:
    """For ``ExportedProgram.run_decompositions``: operators of torch as nodes of ONNX.

    :func:`complete` makes the nodes whole once the program is a model of ONNX. Operators that the
    library has no kernel for stay as they are.
    """
    operators = torch.ops.vq
    return {
        operators.codebook_linear.default: _linear_node,
        operators.codebook_conv.default: _conv_node,
    }


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
) -> Any:
    stages, _, books, _, dim = codebooks.shape
    one_group_only = along_out or (stages, books, dim) != (1, 1, 1)
    if not _readable(input, codes, codebooks) or (group and one_group_only):
        return NotImplemented
    attributes = {
        "in_features": input.shape[-1],
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
) -> Any:
    if not _readable(input, codes, codebooks) or codes.dim() != 4:
        return NotImplemented
    attributes = {
        "in_channels": input.shape[1],
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


def _readable(input: Tensor, codes: Tensor, codebooks: Tensor) -> bool:
    """Whether these are float32, and codes of a nibble or a byte."""
    floats = input.dtype == codebooks.dtype == torch.float32
    return floats and codes.dtype == (torch.int32 if codes.dim() == 4 else torch.uint8)


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
    given = {**attributes, "codebook_shape": list(codebooks.shape), "precision": precision}
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
