"""Everything that follows from a scheme and the shape of a weight, before any fit."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from vq_plugin.coding.bits import packed_size
from vq_plugin.format.header import positions_of

Axis = Literal["in", "out"]
#: Along the channels of one kernel position, too.
CutAxis = Literal["in", "out", "channels"]
CodebookDtype = Literal["float16", "bfloat16", "float32", "int8"]


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """How a weight is cut into sub-vectors, and what its codes and codebooks take.

    Attributes:
        shape: Shape of the weight, ``(out, in, ...)``; everything after ``out`` is one side of the
            2-D view.
        axis: Side of the 2-D view along which sub-vectors run. ``"channels"`` is ``"in"`` with
            the inputs in the order of kernel positions, and of channels within each: sub-vectors
            are channels of one position, and those of the same channels share a codebook.
        dim: Length of a sub-vector; the last one of a row, or of a position, is padded.
        stages: Codebooks whose centers are summed.
        group: Rows per codebook group; ``None`` where all rows share their codebooks.
        shared: Whether all subspaces share one codebook.
        k: Centers per codebook.
        codebook_dtype: How centers are stored.
        scaled: Whether every row has a scale.

    Example:
        >>> import vq_plugin as vq
        >>> geometry = vq.PQ(k=16, dim=4).geometry((64, 30))
        >>> geometry.code_shape, geometry.codebook_shape, geometry.nbytes
        ((1, 64, 8), (1, 1, 8, 16, 4), 1280)
    """

    shape: tuple[int, ...]
    axis: CutAxis = "in"
    dim: int = 1
    stages: int = 1
    group: int | None = None
    shared: bool = True
    k: int
    codebook_dtype: CodebookDtype = "float16"
    scaled: bool = False

    @property
    def rows(self) -> int:
        """Rows of the 2-D view."""
        return math.prod(self.shape[1:]) if self.axis == "out" else self.shape[0]

    @property
    def length(self) -> int:
        """Length of a row."""
        return self.shape[0] if self.axis == "out" else math.prod(self.shape[1:])

    @property
    def positions(self) -> int:
        """Kernel positions, one after the other in a row, that share their codebooks."""
        return positions_of(self.shape, self.axis)

    @property
    def subspaces(self) -> int:
        """Sub-vectors of a row."""
        return self.positions * -(-self.length // self.positions // self.dim)

    @property
    def groups(self) -> int:
        """Groups of rows with codebooks of their own."""
        return 1 if self.group is None else -(-self.rows // self.group)

    @property
    def books(self) -> int:
        """Codebooks of a stage and group: 1, or one for each subspace of a position.

        Subspace ``s`` has the book ``s % books``.
        """
        return 1 if self.shared else self.subspaces // self.positions

    @property
    def sub_vectors(self) -> int:
        """Sub-vectors that share a codebook of a stage, hence centers that it can make use of."""
        return min(self.group or self.rows, self.rows) * self.subspaces // self.books

    @property
    def code_shape(self) -> tuple[int, int, int]:
        """``(stages, rows, subspaces)``."""
        return self.stages, self.rows, self.subspaces

    @property
    def codebook_shape(self) -> tuple[int, int, int, int, int]:
        """``(stages, groups, books, k, dim)``."""
        return self.stages, self.groups, self.books, self.k, self.dim

    @property
    def torch_codebook_dtype(self) -> torch.dtype:
        """What holds centers and row scales in memory: float16 for int8 centers."""
        return center_dtype(self.codebook_dtype)

    @property
    def code_bytes(self) -> int:
        """Bytes of codes of fixed length, packed without gaps."""
        return packed_size(math.prod(self.code_shape), self.k)

    @property
    def table_bytes(self) -> int:
        """Bytes of codebooks and row scales; int8 codebooks have an exponent each."""
        centers = math.prod(self.codebook_shape)
        itemsize = self.torch_codebook_dtype.itemsize
        if self.codebook_dtype == "int8":
            books = centers + math.prod(self.codebook_shape[:3])
        else:
            books = centers * itemsize
        return books + (itemsize * self.rows if self.scaled else 0)

    @property
    def nbytes(self) -> int:
        """Bytes of packed codes, codebooks and row scales."""
        return self.code_bytes + self.table_bytes

    def with_centers(self, k: int) -> Geometry:
        """The same with ``k`` centers, where sub-vectors have no others."""
        return self if k == self.k else replace(self, k=k)

    def matrix(self, weight: Tensor) -> Tensor:
        """The 2-D view of a weight, ``(rows, length)``."""
        if self.axis == "channels":
            weight = weight.flatten(2).mT
        matrix = weight.reshape(weight.shape[0], -1)
        return matrix.T if self.axis == "out" else matrix

    def pieces(self, matrix: Tensor) -> Tensor:
        """The 2-D view, or what has its shape, with a row for every kernel position."""
        return matrix.reshape(-1, matrix.shape[1] // self.positions)

    def weight(self, matrix: Tensor) -> Tensor:
        """Undoes :meth:`matrix`; drops what pads rows, or positions, to whole sub-vectors."""
        return weight_of(matrix, self.shape, self.axis)


def weight_of(matrix: Tensor, shape: tuple[int, ...], axis: CutAxis) -> Tensor:
    """The weight of a shape whose 2-D view along an axis is ``matrix``; see `Geometry.weight`."""
    rows, positions = len(matrix), positions_of(shape, axis)
    length = shape[0] if axis == "out" else math.prod(shape[1:]) // max(positions, 1)
    matrix = matrix.reshape(rows * positions, matrix.shape[1] // max(positions, 1))[:, :length]
    if axis == "channels":
        matrix = matrix.reshape(rows, positions, length).mT
    return (matrix.T if axis == "out" else matrix).reshape(shape)


def center_dtype(codebook_dtype: CodebookDtype) -> torch.dtype:
    """What holds centers in memory; float16 holds int8 ones exactly."""
    dtype: torch.dtype = getattr(torch, "float16" if codebook_dtype == "int8" else codebook_dtype)
    return dtype


def torch_code_dtype(k: int) -> torch.dtype:
    """The smallest integer dtype that torch computes with and that holds ``k - 1``."""
    return torch.uint8 if k <= 256 else torch.int16 if k <= 1 << 15 else torch.int32
