"""Codes, codebooks and scales as constants of an ONNX graph, and the nodes that decode them.

Standard operators only. Codes have no gaps: those of 5 bits are a plane of 4 bits and one of 1 bit.
A plane is of the integer type of its width where the opset has one; otherwise its bytes are taken
apart by shifts.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import cached_property
from typing import Any

import onnx
import torch
from onnx import TensorProto, helper
from torch import Tensor

from vq_plugin.coding.bits import code_bits, pack
from vq_plugin.export.plain import join
from vq_plugin.nn import CodedWeight, View
from vq_plugin.ops import pack_codes, packs
from vq_plugin.ops.packing import NIBBLES
from vq_plugin.rounding import to_int8

# The opsets whose Cast takes an integer type of so many bits.
_SINCE = {8: 1, 4: 21, 2: 25}
_TYPES = {8: TensorProto.UINT8, 4: TensorProto.UINT4, 2: TensorProto.UINT2}
_FLOATS = {
    torch.float16: TensorProto.FLOAT16,
    torch.bfloat16: TensorProto.BFLOAT16,
    torch.float32: TensorProto.FLOAT,
    torch.float64: TensorProto.DOUBLE,
}


class Graph:
    """Nodes and constants to be put before those of a model.

    Attributes:
        nodes: In an order in which they can run.
        constants: What they read.
    """

    def __init__(self, opset: int) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[TensorProto] = []
        self._opset = opset
        self._stored: dict[int, _Stored] = {}

    def add_weight(self, output: str, coded: CodedWeight, view: View) -> None:
        """Decodes a weight, as the parameter that a view makes of it, into the value ``output``."""
        Decoding(self, output, coded, self._store(output, coded)).weight(view)

    def add_table(self, name: str, coded: CodedWeight) -> None:
        """Codes as ``uint8`` or more, codebooks and scales, of the layer with that name."""
        Decoding(self, name, coded, self._store(name, coded)).table()

    def add_operands(self, name: str, coded: CodedWeight, *, rows: bool) -> None:
        """Codes, codebooks and scales of the layer with that name, as its node reads them.

        Codes are in the order of the kernels, or of the ``rows`` of a table.
        """
        Decoding(self, name, coded, self._store(name, coded)).operands(rows=rows)

    def constant(self, name: str, tensor: Tensor) -> str:
        """A constant with the values of a tensor."""
        data = tensor.contiguous().view(torch.uint8).numpy().tobytes()
        types = {**_FLOATS, torch.int8: TensorProto.INT8, torch.int64: TensorProto.INT64}
        self.raw(name, types[tensor.dtype], tensor.shape, data)
        return name

    def raw(self, name: str, kind: int, shape: Sequence[int], data: bytes) -> None:
        """A constant of a type of ONNX, by its bytes."""
        self.constants.append(helper.make_tensor(name, kind, shape, data, raw=True))

    def _store(self, name: str, coded: CodedWeight) -> _Stored:
        """The names of what is decoded; weights that share it have it once."""
        key = id(coded.codebooks)
        if key not in self._stored:
            self._stored[key] = _Stored(self, name, coded, self._opset)
        return self._stored[key]


class _Stored:
    """Constants of a weight, which its graph gets when they are first asked for."""

    def __init__(self, graph: Graph, name: str, coded: CodedWeight, opset: int) -> None:
        self.name = name
        self._graph, self._opset = graph, opset
        self._small = small = coded.codebook_weight
        self.exponents = ""
        centers = small.codebooks
        if coded.scheme.codebook_dtype == "int8":
            centers, exponents = to_int8(centers)
            steps = torch.pow(2.0, exponents.double()).half()[..., None, None]
            self.exponents = graph.constant(f"{name}.steps", steps)
        self.codebooks = graph.constant(f"{name}.centers", centers)
        self.scale = ""
        if small.scale is not None:
            self.scale = graph.constant(f"{name}.row_scale", small.scale)

    @cached_property
    def planes(self) -> list[tuple[str, int, int]]:
        """Names, each with the place of its lowest bit and its width, or 0 where that is a type."""
        codes = self._small.codes.numpy().reshape(-1).astype("int32")
        found = []
        place = 0
        for width in _widths(code_bits(self._small.k)):
            raw = pack((codes >> place) & ((1 << width) - 1), 1 << width).tobytes()
            typed = self._opset >= _SINCE.get(width, 1 << 30)
            shape = list(self._small.codes.shape) if typed else [len(raw)]
            kind = _TYPES[width] if typed else TensorProto.UINT8
            name = f"{self.name}.codes" + (f".{place}" if place else "")
            self._graph.raw(name, kind, shape, raw)
            found.append((name, place, 0 if typed else width))
            place += width
        return found

    @cached_property
    def rows(self) -> str:
        """The codes row by row, of 4 bits or of 8."""
        codes, name = self._small.codes, f"{self.name}.rows"
        wide = self._small.k > 16
        kind = TensorProto.UINT8 if wide else TensorProto.UINT4
        raw = pack(codes.numpy().reshape(-1).astype("int32"), 256 if wide else 16)
        self._graph.raw(name, kind, codes.shape, raw.tobytes())
        return name

    @cached_property
    def operand(self) -> str:
        """The codes in the order in which kernels read them."""
        name, codes = f"{self.name}.codes", self._small.codes
        cut = self._small.geometry
        if not packs(cut.k, cut.group):
            self._graph.raw(name, TensorProto.UINT8, codes.shape, codes.numpy().tobytes())
            return name
        blocks = pack_codes(codes, along_out=cut.axis == "out")
        # The same bytes: the lower half of a byte comes first, as it does in a dword.
        shape = (*blocks.shape, NIBBLES)
        self._graph.raw(name, TensorProto.UINT4, shape, blocks.numpy().tobytes())
        return name


class Decoding:
    """The nodes that decode one weight."""

    def __init__(self, graph: Graph, name: str, coded: CodedWeight, stored: _Stored) -> None:
        self._graph, self._name, self._coded, self._stored = graph, name, coded, stored
        self._cut = coded.geometry
        dtype = coded.codebooks.dtype
        if dtype not in _FLOATS:
            raise ValueError(f"layer {name!r}: ONNX has no weights of {dtype}")
        self._dtype = _FLOATS[dtype]

    def decoded(self) -> str:
        """The weight, ``cut.shape``."""
        cut = self._cut
        matrix = self._reshaped(self._vectors(self._indices()), (cut.rows, cut.subspaces * cut.dim))
        if cut.scaled:
            matrix = self._add("Mul", matrix, self._reshaped(self._scale(), (cut.rows, 1)))
        return self._weight_of(matrix)

    def _vectors(self, index: str) -> str:
        """The sums of the centers of all stages that indices of :meth:`_indices` stand for."""
        stages = self._cut.stages
        table = self._reshaped(self._codebooks(), (-1, self._cut.dim))
        vectors = self._add("Gather", table, index, axis=0)
        if stages == 1:
            return vectors
        # In the order of the stages, as the layer adds them.
        names = [f"{self._name}/stage{at}" for at in range(stages)]
        self._node("Split", [vectors, self._integers([1] * stages)], names, axis=0)
        return self._add("Sum", *names)

    def weight(self, view: View) -> None:
        """The parameter under the name of the decoding."""
        cut, coded = self._cut, self._coded
        weight = self.decoded()
        if coded._padding is not None and coded._zero_row:
            rows = self._range(cut.shape[0], 1)
            is_padding = self._add("Equal", rows, self._int32(coded._padding))
            zero = self._cast(self._integers([0]), self._dtype)
            where = self._reshaped(is_padding, (-1, *[1] * (len(cut.shape) - 1)))
            weight = self._add("Where", where, zero, weight)
        if not view.plain:
            weight = self._reshaped(weight, [view.split[at] for at in view.order])
            back = sorted(range(len(view.order)), key=view.order.__getitem__)
            weight = self._add("Transpose", weight, perm=back)
        self._node(
            "Reshape", [weight, self._integers(view.parameter_shape)], [self._name], allowzero=1
        )

    def table(self) -> None:
        """Codes, codebooks and scales as the plain model has them."""
        kind = TensorProto.UINT8 if self._cut.k <= 256 else TensorProto.INT32
        kind = TensorProto.INT16 if 256 < self._cut.k <= 1 << 15 else kind
        self._rename(self._codes(kind), "_codes")
        self._rename_tables()

    def operands(self, *, rows: bool) -> None:
        """Codes, codebooks and scales as a layer's node reads them."""
        self._rename(self._stored.rows if rows else self._stored.operand, "_codes")
        self._rename_tables()

    def _rename_tables(self) -> None:
        self._rename(self._codebooks(), "codebooks")
        if self._cut.scaled:
            self._rename(self._scale(), "scale")

    def _rename(self, value: str, leaf: str) -> None:
        """Has the plain model's value of a layer, or of the model itself."""
        self._node("Identity", [value], [join(self._name, leaf)])

    def _codes(self, kind: int) -> str:
        """Codes, ``(stages, rows, subspaces)``, of an integer type."""
        total = ""
        count = math.prod(self._cut.code_shape)
        for plane, place, width in self._stored.planes:
            values = plane
            if width:
                shifts = self._small(TensorProto.UINT8, range(0, 8, width))
                mask = self._small(TensorProto.UINT8, [(1 << width) - 1])
                values = self._reshaped(values, (-1, 1))
                values = self._add("BitShift", values, shifts, direction="RIGHT")
                values = self._reshaped(self._add("BitwiseAnd", values, mask), (-1,))
                if count % (8 // width):
                    values = self._first(values, count, axis=0)
                values = self._reshaped(values, self._cut.code_shape)
            values = self._cast(values, kind)
            if place:
                values = self._add("Mul", values, self._small(kind, [1 << place]))
            total = self._add("Add", total, values) if total else values
        if total:
            return total
        # One center: there is nothing to tell apart.
        zeros = helper.make_tensor("zero", kind, [1], [0])
        return self._add("ConstantOfShape", self._integers(self._cut.code_shape), value=zeros)

    def _indices(self) -> str:
        """The rows of all codebooks, one below the other, that codes stand for."""
        cut = self._cut
        index = self._codes(TensorProto.INT32)
        if cut.books > 1:
            apart = self._reshaped(index, (cut.stages, cut.rows, -1, cut.books))
            apart = self._add("Add", apart, self._range(cut.books, cut.k))
            index = self._reshaped(apart, cut.code_shape)
        return self._in_their_books(index, self._range(cut.rows, 1))

    def _in_their_books(self, index: str, rows: str) -> str:
        """Indices, ``(stages, rows, subspaces)``, with where the books of group and stage start."""
        cut = self._cut
        if cut.groups > 1:
            assert cut.group is not None
            owners = self._add("Div", rows, self._int32(cut.group))
            starts = self._add("Mul", owners, self._int32(cut.books * cut.k))
            index = self._add("Add", index, self._reshaped(starts, (1, -1, 1)))
        if cut.stages > 1:
            starts = self._range(cut.stages, cut.groups * cut.books * cut.k)
            index = self._add("Add", index, self._reshaped(starts, (cut.stages, 1, 1)))
        return index

    def _codebooks(self) -> str:
        """Centers, ``(stages, groups, books, k, dim)``, in the dtype of the weight."""
        centers = self._cast(self._stored.codebooks, self._dtype)
        if self._stored.exponents:
            centers = self._add("Mul", centers, self._cast(self._stored.exponents, self._dtype))
        return centers

    def _scale(self) -> str:
        return self._cast(self._stored.scale, self._dtype)

    def _weight_of(self, matrix: str) -> str:
        """As :func:`vq_plugin.schemes.geometry.weight_of`."""
        cut = self._cut
        rows, positions = cut.rows, cut.positions
        width, length = (
            cut.subspaces * cut.dim // max(positions, 1),
            cut.length // max(positions, 1),
        )
        if cut.axis == "channels":
            matrix = self._reshaped(matrix, (rows, positions, width))
            if width > length:
                matrix = self._first(matrix, length, axis=2)
            return self._reshaped(self._add("Transpose", matrix, perm=(0, 2, 1)), cut.shape)
        if width > length:
            matrix = self._first(matrix, length, axis=1)
        if cut.axis == "out":
            matrix = self._add("Transpose", matrix, perm=(1, 0))
        return self._reshaped(matrix, cut.shape)

    def _add(self, operator: str, *inputs: str, **attributes: Any) -> str:
        output = f"{self._name}/{len(self._graph.nodes)}"
        self._node(operator, inputs, [output], **attributes)
        return output

    def _node(
        self, operator: str, inputs: Sequence[str], outputs: Sequence[str], **attributes: Any
    ) -> None:
        self._graph.nodes.append(helper.make_node(operator, inputs, outputs, **attributes))

    def _cast(self, value: str, kind: int) -> str:
        return self._add("Cast", value, to=kind)

    def _reshaped(self, value: str, shape: Sequence[int]) -> str:
        return self._add("Reshape", value, self._integers(shape))

    def _first(self, value: str, count: int, axis: int) -> str:
        return self._add(
            "Slice", value, self._integers([0]), self._integers([count]), self._integers([axis])
        )

    def _range(self, count: int, step: int) -> str:
        return self._add("Range", self._int32(0), self._int32(count * step), self._int32(step))

    def _integers(self, values: Sequence[int]) -> str:
        return self._add("Constant", value_ints=list(values))

    def _int32(self, value: int) -> str:
        """A number by itself."""
        tensor = helper.make_tensor("value", TensorProto.INT32, [], [value])
        return self._add("Constant", value=tensor)

    def _small(self, kind: int, values: Sequence[int]) -> str:
        tensor = helper.make_tensor("values", kind, [len(values)], list(values))
        return self._add("Constant", value=tensor)


def _widths(bits: int) -> list[int]:
    """The widths of planes of codes, of 8, 4, 2 and 1 bits, the widest first."""
    return [8] * (bits // 8) + [width for width in (4, 2, 1) if bits & width]
