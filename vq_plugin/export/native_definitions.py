"""What the nodes of :mod:`vq_plugin.export.native_onnx` compute, in standard operators of ONNX."""

from __future__ import annotations

import math

import onnx
from onnx import TensorProto, helper

from vq_plugin.export.onnx_codes import Decoding, Graph
from vq_plugin.ops import packs
from vq_plugin.ops.packing import LANES, NIBBLES
from vq_plugin.schemes import Geometry

#: Inputs of a node; the last two may be missing.
INPUTS = ("input", "codes", "codebooks", "scale", "bias")


def definition(node: onnx.NodeProto, cut: Geometry, opset: int) -> list[onnx.NodeProto]:
    """What a node computes.

    Args:
        node: ``CodebookLinear``, ``CodebookConv`` or ``CodebookEmbedding``.
        cut: How the weight is cut; ``cut.scaled`` says whether the node has a scale.
        opset: Version of the standard operators, 21 or later.

    Returns:
        Nodes from :data:`INPUTS` to ``output``.
    """
    body = _Body(cut, opset)
    bias = ["bias"] if node.input[4:5] else []
    if node.op_type == "CodebookConv":
        return body.convolution(node, bias)
    if node.op_type == "CodebookEmbedding":
        return body.rows()
    return body.product(bias)


class _Body(Decoding):
    """The decoding of a node's inputs, and what follows."""

    def __init__(self, cut: Geometry, opset: int) -> None:
        self._graph, self._name, self._cut = Graph(opset), "weight", cut
        self._dtype = TensorProto.FLOAT

    def product(self, bias: list[str]) -> list[onnx.NodeProto]:
        """The product with the weight's 2-D view, ``(out, in)``."""
        out = self._cut.shape[0]
        weight = self._reshaped(self.decoded(), (out, math.prod(self._cut.shape[1:])))
        operands = ["input", self._add("Transpose", weight, perm=(1, 0))]
        if bias:
            self._node("Add", [self._add("MatMul", *operands), *bias], ["output"])
        else:
            self._node("MatMul", operands, ["output"])
        return self._graph.nodes

    def convolution(self, node: onnx.NodeProto, bias: list[str]) -> list[onnx.NodeProto]:
        """The convolution with the weight, of the node's settings."""
        given = {each.name: helper.get_attribute_value(each) for each in node.attribute}
        names = ("kernel_shape", "strides", "dilations", "group")
        settings = {name: given[name] for name in names}
        pads = [*given["padding"], *given["padding"]]
        self._node("Conv", ["input", self.decoded(), *bias], ["output"], pads=pads, **settings)
        return self._graph.nodes

    def rows(self) -> list[onnx.NodeProto]:
        """The rows that are asked for: of all others no code is decoded."""
        cut = self._cut
        rows = self._reshaped("input", (-1,))
        # Bytes: of 4 bits nothing can be gathered.
        codes = self._add("Gather", self._cast("codes", TensorProto.UINT8), rows, axis=1)
        index = self._cast(codes, TensorProto.INT32)
        if cut.books > 1:
            index = self._add("Add", index, self._range(cut.books, cut.k))
        index = self._in_their_books(index, self._cast(rows, TensorProto.INT32))
        width, length = cut.subspaces * cut.dim, cut.length
        found = self._reshaped(self._vectors(index), (-1, width))
        if width > length:
            found = self._first(found, length, axis=1)
        if cut.scaled:
            scale = self._add("Gather", "scale", rows, axis=0)
            found = self._add("Mul", found, self._reshaped(scale, (-1, 1)))
        sizes = self._add("Concat", self._add("Shape", "input"), self._integers([length]), axis=0)
        self._node("Reshape", [found, sizes], ["output"], allowzero=1)
        return self._graph.nodes

    def _codes(self, kind: int) -> str:
        """Codes in the order of the kernels as ``(stages, rows, subspaces)``."""
        cut = self._cut
        codes = self._cast("codes", kind)
        if not packs(cut.k, cut.group):
            return codes
        order = (0, 2, 3, 1, 4) if cut.axis == "out" else (0, 1, 3, 2, 4)
        rows, subspaces = -(-cut.rows // LANES) * LANES, -(-cut.subspaces // NIBBLES) * NIBBLES
        blocks = self._add("Transpose", codes, perm=order)
        plain = self._reshaped(blocks, (cut.stages, rows, subspaces))
        if rows > cut.rows:
            plain = self._first(plain, cut.rows, axis=1)
        return plain if subspaces == cut.subspaces else self._first(plain, cut.subspaces, axis=2)

    def _codebooks(self) -> str:
        return "codebooks"

    def _scale(self) -> str:
        return "scale"
