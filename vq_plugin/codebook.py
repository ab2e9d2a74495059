"""What every scheme gives: one ``CodebookWeight``, its decode and its size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.fields import unpack_fields
from vq_plugin.schemes import CutAxis, Geometry, Scheme
from vq_plugin.schemes.geometry import weight_of


def decode(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    *,
    shape: tuple[int, ...],
    axis: CutAxis,
    group: int | None = None,
) -> Tensor:
    """Rebuilds a weight from codes and codebooks; differentiable in ``codebooks`` and ``scale``.

    ``W[r, s·dim:(s+1)·dim] = scale[r] · Σ_t codebooks[t, r // group, s % books, codes[t, r, s]]``,
    cropped to the row's length (for ``axis="channels"`` at every kernel position), in the order of
    ``shape``, in the dtype of ``codebooks``.
    Shapes are those of :class:`CodebookWeight`.
    """
    stages, *_, dim = codebooks.shape
    _, rows, subspaces = codes.shape
    offset = table_offsets(rows, subspaces, codebooks.shape, group, codes.device)
    matrix: Tensor | None = None
    for stage in range(stages):
        # F.embedding, not indexing: it exports to ONNX as a Gather of uint8 codes.
        index = codes[stage].int()
        if offset is not None:
            index = index + offset
        vectors = functional.embedding(index, codebooks[stage].reshape(-1, dim))
        matrix = vectors if matrix is None else matrix + vectors
    assert matrix is not None
    matrix = matrix.reshape(rows, subspaces * dim)
    if scale is not None:
        matrix = matrix * scale.unsqueeze(1)
    return weight_of(matrix, shape, axis)


def decode_rows(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    rows: Tensor,
    *,
    shape: tuple[int, ...],
    axis: CutAxis,
    group: int | None = None,
    bits: int = 8,
) -> Tensor:
    """Some rows of the weight that :func:`decode` gives, ``(out, in)``; no others are decoded.

    ``rows`` are integers, ``(...)``; the result is ``(..., in)``. One that there is not is an
    ``IndexError``. With less than 8 ``bits``, codes are what
    :func:`vq_plugin.fields.pack_fields` made of them, and run along the inputs.
    """
    stages, groups, books, k, dim = codebooks.shape
    look_up, device = functional.embedding, codes.device
    offset: Tensor | int = 0
    if axis != "out":
        lists, tables = codes, codebooks.reshape(stages, -1, dim)
        at, owners = rows, rows.int().unsqueeze(-1)
        if books > 1:
            offset = k * torch.arange(books, dtype=torch.int32, device=device)
    else:
        # One element of every sub-vector. Rows that only pad them are refused as others are.
        rows = rows + look_up(rows, rows.new_zeros(()).expand(shape[0], 1)).squeeze(-1)
        lists, tables = codes.mT, codebooks.reshape(stages, -1, 1)
        at, owners = rows // dim, torch.arange(codes.shape[1], dtype=torch.int32, device=device)
        if books > 1:
            offset = k * at.unsqueeze(-1)
    if groups > 1:
        assert group is not None
        offset = offset + (books * k) * (owners // group)
    result: Tensor | None = None
    for stage in range(stages):
        found = look_up(at, lists[stage])
        index = unpack_fields(found, bits, -(-shape[1] // dim)).int() + offset
        if axis == "out":
            index = index.long() * dim + (rows % dim).unsqueeze(-1)
        vectors = look_up(index, tables[stage])
        result = vectors if result is None else result + vectors
    assert result is not None
    result = result.flatten(-2)
    if axis == "out":
        return result if scale is None else result * scale
    result = result[..., : shape[1]]
    return result if scale is None else result * look_up(rows, scale.unsqueeze(1))


def table_offsets(
    rows: int, subspaces: int, table: torch.Size, group: int | None, device: torch.device
) -> Tensor | None:
    """Where each code's codebook starts in the flattened table; ``None`` where all start at 0.

    ``table`` is the shape of the codebooks.
    """
    _, groups, books, k, _ = table
    offsets: Tensor | None = None
    if books > 1:
        offsets = torch.arange(subspaces, dtype=torch.int32, device=device) % books * k
    if groups > 1:
        assert group is not None
        owner = torch.arange(rows, dtype=torch.int32, device=device) // group
        starts = (owner * (books * k)).unsqueeze(1)
        offsets = starts if offsets is None else starts + offsets
    return offsets


@dataclass(frozen=True, eq=False)
class CodebookWeight:
    """A compressed weight: codes into codebooks, whatever the scheme.

    Attributes:
        codes: Index of the center of every sub-vector and stage; the smallest integer dtype that
            holds ``k - 1`` (uint8 up to 256 centers); ``(stages, rows, subspaces)``, where
            ``rows`` is the other side of the 2-D view than the scheme's axis.
        codebooks: Centers in the scheme's ``codebook_dtype``,
            ``(stages, groups, books, k, dim)``; int8 ones in float16, see
            :func:`vq_plugin.rounding.round_centers`. ``k`` may be below the scheme's, see
            :func:`vq_plugin.quantize_weight`.
        scale: Row scales ``(rows,)`` in the dtype of ``codebooks``, or ``None``.
        scheme: The scheme that was asked for.
        shape: Shape of the weight.
        dtype: Dtype of the weight, and of :meth:`decode`.
        bias_shift: What the bias of a layer that gets this weight takes up of its error, float32,
            ``(out,)``: from a calibrated fit, ``None`` otherwise. Layers add it once, when they are
            made.
    """

    codes: Tensor
    codebooks: Tensor
    scale: Tensor | None
    scheme: Scheme
    shape: tuple[int, ...]
    dtype: torch.dtype = torch.float32
    bias_shift: Tensor | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` unless codes, codebooks and scale fit the shape."""
        geometry = self.scheme.geometry(self.shape)
        k = self.codebooks.shape[3] if self.codebooks.dim() == 5 else 0
        fits = (
            k > 0
            and tuple(self.codes.shape) == geometry.code_shape
            and tuple(self.codebooks.shape) == geometry.with_centers(k).codebook_shape
            and geometry.scaled == (self.scale is not None)
            and (self.scale is None or tuple(self.scale.shape) == (geometry.rows,))
        )
        if not fits:
            scale = "" if self.scale is None else f" and row scales {tuple(self.scale.shape)}"
            raise ValueError(
                f"codes {tuple(self.codes.shape)} and codebooks {tuple(self.codebooks.shape)}"
                f"{scale} do not make a weight of shape {self.shape} by {self.scheme}"
            )

    @property
    def k(self) -> int:
        """Centers per codebook, after any reduction."""
        return self.codebooks.shape[3]

    @property
    def geometry(self) -> Geometry:
        """How the weight is cut into sub-vectors, with the centers that there are."""
        return self.scheme.geometry(self.shape).with_centers(self.k)

    def decode(self) -> Tensor:
        """The weight that the codes stand for: ``shape``, ``dtype``."""
        geometry = self.geometry
        return decode(
            self.codes,
            self.codebooks.to(self.dtype),
            None if self.scale is None else self.scale.to(self.dtype),
            shape=self.shape,
            axis=geometry.axis,
            group=geometry.group,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of a fixed-length file: packed codes, codebooks and scales."""
        return self.geometry.nbytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, codebooks included."""
        return 8 * self.nbytes / math.prod(self.shape)
