"""What the nodes of :mod:`vq_plugin.export.native_onnx` compute, in standard operators of ONNX."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper

from vq_plugin.ops.packing import LANES, NIBBLES


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

    def __call__(self, operator: str, *inputs: str, output: str = "", **attributes: Any) -> str:
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
        return self(
            "Slice", value, self.integers([0] * len(counts)), ends, self.integers([*counts])
        )


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
    attributes = {
        name: settings[name] for name in ("kernel_shape", "strides", "dilations", "group")
    }
    body("Conv", *operands, output="output", pads=[*padding, *padding], **attributes)
    return body.nodes
