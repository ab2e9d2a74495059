"""Codebook layers as nodes of the domain ``vq_plugin`` in ONNX, which run from their codes.

A node's operator is in the library of :func:`vq_plugin.onnxruntime_library`. What it computes is
also in the file, as a function of standard operators under the same name: a runtime that has no
such operator puts the function in its place. Functions hold shapes, so layers of other shapes have
functions of their own, told apart by their ``overload`` (ONNX IR version 10).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from vq_plugin.ops.convolution import conv_fake
from vq_plugin.ops.library import rounded
from vq_plugin.ops.packing import LANES, NIBBLES

DOMAIN = "vq_plugin"
VERSION = 1
# The least that has overloads of functions, and the least whose Cast takes UINT4.
IR_VERSION, OPSET = 10, 21

_INPUTS = ("input", "codes", "codebooks", "scale", "bias")


@dataclass(frozen=True)
class Weight:
    """A weight in its 2-D view, as nodes hold it.

    Attributes:
        rows: Rows; along the outputs of a linear layer these are its inputs.
        length: Values of a row.
        codebooks: ``(stages, groups, books, k, dim)``.
        group: Rows per group of codebooks; 0 when there is one group.
        packed: Whether codes are ``UINT4``, in blocks of 16 rows and 8 subspaces; otherwise they
            are ``UINT8``, ``(stages, rows, subspaces)``.
        along_out: Whether sub-vectors run along the outputs, which changes the order of blocks.
    """

    rows: int
    length: int
    codebooks: tuple[int, int, int, int, int]
    group: int = 0
    packed: bool = True
    along_out: bool = False

    @property
    def subspaces(self) -> int:
        """Sub-vectors of a row."""
        return -(-self.length // self.codebooks[4])


class _Body:
    """Nodes of a function; the names of their outputs are numbered."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: object) -> str:
        output = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(operator, inputs, [output], **attributes))
        return output

    def integers(self, values: Sequence[int]) -> str:
        return self("Constant", value_ints=list(values))

    def reshaped(self, value: str, shape: Sequence[int]) -> str:
        return self("Reshape", value, self.integers(shape))

    def first(self, value: str, counts: dict[int, int]) -> str:
        """The first of each of some axes."""
        if not counts:
            return value
        ends = self.integers(list(counts.values()))
        return self("Slice", value, self.integers([0] * len(counts)), ends, self.integers([*counts]))


def _plain_codes(body: _Body, weight: Weight) -> str:
    """Codes as ``INT32``, ``(stages, rows, subspaces)``."""
    codes = body("Cast", "codes", to=TensorProto.INT32)
    if not weight.packed:
        return codes
    rows, subspaces = weight.rows, weight.subspaces
    order = (0, 2, 3, 1, 4) if weight.along_out else (0, 1, 3, 2, 4)
    wide = (-(-rows // LANES) * LANES, -(-subspaces // NIBBLES) * NIBBLES)
    blocks = body("Transpose", codes, perm=order)
    plain = body.reshaped(blocks, (weight.codebooks[0], *wide))
    counts = {1: rows, 2: subspaces}
    return body.first(plain, {a: n for a, n in counts.items() if n != wide[a - 1]})


def _decoded(body: _Body, weight: Weight, positions: int = 1) -> str:
    """The weight, ``(rows, subspaces · dim)``, of a scale's rows."""
    stages, groups, books, k, dim = weight.codebooks
    row = np.arange(weight.rows if groups > 1 else 1) // (weight.group or weight.rows)
    # Positions of a convolution's kernel share the books of its channels.
    book = np.arange(weight.subspaces if books > 1 else 1) % (weight.subspaces // positions)
    stage = np.arange(stages)
    first = ((stage[:, None, None] * groups + row[:, None]) * books + book) * k
    codes = _plain_codes(body, weight)
    if first.any():
        tensor = onnx.numpy_helper.from_array(first.astype(np.int32))
        codes = body("Add", codes, body("Constant", value=tensor))
    vectors = body("Gather", body.reshaped("codebooks", (-1, dim)), codes, axis=0)
    if stages > 1:
        vectors = body("ReduceSum", vectors, body.integers([0]), keepdims=0)
    return body.reshaped(vectors, (weight.rows, weight.subspaces * dim))


def _scaled(body: _Body, values: str, scaled: bool) -> str:
    return body("Mul", values, body.reshaped("scale", (-1, 1))) if scaled else values


def linear_definition(weight: Weight, *, scale: bool, bias: bool) -> list[onnx.NodeProto]:
    """``output = input · Wᵀ + bias`` in standard operators.

    Args:
        weight: What the codes stand for.
        scale: Whether the node has the input ``scale``.
        bias: Whether the node has the input ``bias``.
    """
    body = _Body()
    matrix = _decoded(body, weight)
    if weight.subspaces * weight.codebooks[4] != weight.length:
        matrix = body.first(matrix, {1: weight.length})
    matrix = _scaled(body, matrix, scale)
    if not weight.along_out:
        matrix = body("Transpose", matrix, perm=(1, 0))
    product = body("MatMul", "input", matrix, output="" if bias else "output")
    if bias:
        body("Add", product, "bias", output="output")
    return body.nodes


def conv_definition(
    weight: Weight, channels: int, settings: dict[str, Sequence[int]], *, scale: bool, bias: bool
) -> list[onnx.NodeProto]:
    """A convolution in standard operators, of codes into books of channels.

    Args:
        weight: What the codes stand for; rows are outputs.
        channels: Inputs of one group.
        settings: ``kernel_shape``, ``strides``, ``padding``, ``dilations`` and ``group``.
        scale: Whether the node has the input ``scale``.
        bias: Whether the node has the input ``bias``.
    """
    kernel, padding = settings["kernel_shape"], settings["padding"]
    positions, dim = math.prod(kernel), weight.codebooks[4]
    body = _Body()
    matrix = _scaled(body, _decoded(body, weight, positions), scale)
    pieces = weight.subspaces // positions
    by_position = body.reshaped(matrix, (weight.rows, positions, pieces * dim))
    if pieces * dim != channels:
        by_position = body.first(by_position, {2: channels})
    by_channel = body("Transpose", by_position, perm=(0, 2, 1))
    kernels = body.reshaped(by_channel, (weight.rows, channels, *kernel))
    operands = ("input", kernels, "bias") if bias else ("input", kernels)
    attributes = {name: settings[name] for name in ("kernel_shape", "strides", "dilations", "group")}
    body("Conv", *operands, output="output", pads=[*padding, *padding], **attributes)
    return body.nodes


def complete(model: onnx.ModelProto) -> None:
    """Makes the nodes of :func:`decompositions` whole: packed codes become ``UINT4``, and each node's
    definition is added to its model, once for equal ones.

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


def _linear(given: dict[str, Any], *, packed: bool, scale: bool, bias: bool) -> list[onnx.NodeProto]:
    shape = (given["in_features"], given["out_features"])
    length, rows = shape[::-1] if given["along_out"] else shape
    books = tuple(given["codebook_shape"])
    weight = Weight(rows, length, books, given["group"], packed, bool(given["along_out"]))
    return linear_definition(weight, scale=scale, bias=bias)


def _conv(given: dict[str, Any], *, packed: bool, scale: bool, bias: bool) -> list[onnx.NodeProto]:
    channels, books = given["in_channels"] // given["group"], tuple(given["codebook_shape"])
    wide = -(-channels // books[4]) * books[4]
    weight = Weight(given["out_channels"], math.prod(given["kernel_shape"]) * wide, books)
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


def decompositions() -> dict[Any, Callable[..., Tensor]]:
    """For ``ExportedProgram.run_decompositions``: operators of torch as nodes of ONNX.

    :func:`complete` makes the nodes whole once the program is a model of ONNX.
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
) -> Tensor:
    attributes = {
        "in_features": input.shape[-1],
        "out_features": out_features,
        "along_out": int(along_out),
        "group": group,
    }
    shape = (*input.shape[:-1], out_features)
    weight = (codes, codebooks, scale)
    return _node("CodebookLinear", input, weight, bias, codebook_dtype, precision, attributes, shape)


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
