"""What every scheme gives: one ``CodebookWeight``, its decode and its size."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.coding.bits import code_bits
from vq_plugin.schemes import KM, PQ, RQ, Axis, Scheme


def matrix_view(weight: Tensor, axis: Axis) -> Tensor:
    """The 2-D view of a weight along whose rows sub-vectors run.

    Args:
        weight: Linear ``(out, in)``, ConvNd ``(out, in/groups, *kernel)`` or Embedding
            ``(num, dim)``.
        axis: ``"in"`` gives ``(out, in/groups · kernel)``, ``"out"`` its transpose.

    Returns:
        A view, shape ``(rows, length)``.
    """
    matrix = weight.reshape(weight.shape[0], -1)
    return matrix if axis == "in" else matrix.T


def decode(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    *,
    shape: tuple[int, ...],
    axis: Axis,
    group: int | None = None,
) -> Tensor:
    """Rebuilds a weight from codes and codebooks; differentiable in ``codebooks`` and ``scale``.

    ``W[r, s·dim:(s+1)·dim] = scale[r] · Σ_t codebooks[t, r // group, s or 0, codes[t, r, s]]``,
    cropped to the row's length and transposed back for ``axis="out"``.

    Args:
        codes: Integers, ``(stages, rows, subspaces)``.
        codebooks: Floats, ``(stages, groups, books, k, dim)``; ``books`` is ``subspaces`` or 1.
        scale: Floats, ``(rows,)``, or ``None``.
        shape: Shape of the weight.
        axis: Side of the 2-D view along which sub-vectors run.
        group: Rows per codebook group; ``None`` when there is one group.

    Returns:
        The weight, ``shape``, in the dtype of ``codebooks``.
    """
    stages, groups, books, k, dim = codebooks.shape
    _, rows, subspaces = codes.shape
    offset = table_offsets(rows, groups, books, k, group, codes.device)
    matrix: Tensor | None = None
    for stage in range(stages):
        # F.embedding, not indexing: it exports to ONNX as a Gather of uint8 codes.
        index = codes[stage].int()
        if offset is not None:
            index = index + offset
        vectors = functional.embedding(index, codebooks[stage].reshape(-1, dim))
        matrix = vectors if matrix is None else matrix + vectors
    assert matrix is not None
    length = shape[0] if axis == "out" else math.prod(shape[1:])
    matrix = matrix.reshape(rows, subspaces * dim)[:, :length]
    if scale is not None:
        matrix = matrix * scale.unsqueeze(1)
    return (matrix if axis == "in" else matrix.T).reshape(shape)


def table_offsets(
    rows: int, groups: int, books: int, k: int, group: int | None, device: torch.device
) -> Tensor | None:
    """Where each code's codebook starts in the flattened table; ``None`` where all start at 0."""
    offsets: Tensor | None = None
    if books > 1:
        offsets = torch.arange(books, dtype=torch.int32, device=device) * k
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
        """Checks that codes, codebooks and scale fit the shape.

        Raises:
            ValueError: If they do not.
        """
        rows, length = matrix_view(
            torch.empty(self.shape, device="meta"), self.scheme.view_axis
        ).shape
        groups = -(-rows // self.group) if self.group else 1
        stages, code_rows, subspaces = _shape(self.codes, 3, "codes")
        book_stages, book_groups, books, _, dim = _shape(self.codebooks, 5, "codebooks")
        fits = (
            (stages, code_rows, subspaces) == (book_stages, rows, -(-length // dim))
            and book_groups == groups
            and books in (1, subspaces)
            and (self.scale is None or tuple(self.scale.shape) == (rows,))
        )
        if not fits:
            raise ValueError(
                f"codes {tuple(self.codes.shape)} and codebooks {tuple(self.codebooks.shape)} "
                f"do not make a weight of shape {self.shape} by {self.scheme}"
            )

    @property
    def k(self) -> int:
        """Centers per codebook, after any reduction."""
        return self.codebooks.shape[3]

    @property
    def group(self) -> int | None:
        """Rows per codebook group, ``None`` where all rows share their codebooks."""
        return self.scheme.group if isinstance(self.scheme, KM) else None

    def decode(self) -> Tensor:
        """The weight that the codes stand for: ``shape``, ``dtype``."""
        return decode(
            self.codes,
            self.codebooks.to(self.dtype),
            None if self.scale is None else self.scale.to(self.dtype),
            shape=self.shape,
            axis=self.scheme.view_axis,
            group=self.group,
        )

    @property
    def nbytes(self) -> int:
        """Bytes of a fixed-length file: packed codes, codebooks and scales."""
        code_bytes = -(-self.codes.numel() * code_bits(self.k) // 8)
        scale_bytes = 0 if self.scale is None else self.scale.nbytes
        return code_bytes + codebook_nbytes(tuple(self.codebooks.shape), self.scheme) + scale_bytes

    @property
    def bits_per_weight(self) -> float:
        """``nbytes`` in bits over the number of weights, codebooks included."""
        return 8 * self.nbytes / math.prod(self.shape)


def _shape(values: Tensor, dims: int, name: str) -> torch.Size:
    if values.dim() != dims or (dims == 5 and values.numel() == 0):
        raise ValueError(f"{name} of shape {tuple(values.shape)} do not have {dims} dimensions")
    return values.shape


def code_dtype(k: int) -> torch.dtype:
    """The smallest integer dtype that torch computes with and that holds ``k - 1``."""
    return torch.uint8 if k <= 256 else torch.int16 if k <= 1 << 15 else torch.int32


def codebook_nbytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """Bytes of codebooks in a file.

    Args:
        shape: Theirs, ``(stages, groups, books, k, dim)``.
        scheme: With int8 every codebook has a byte more, for the exponent of its step.

    Example:
        >>> from vq_plugin.schemes import PQ
        >>> [codebook_nbytes((1, 1, 8, 16, 4), PQ(codebook_dtype=d)) for d in ("float16", "int8")]
        [1024, 520]
    """
    if scheme.codebook_dtype == "int8":
        return math.prod(shape) + math.prod(shape[:3])
    return math.prod(shape) * scheme.torch_codebook_dtype.itemsize


def expected_nbytes(shape: tuple[int, ...], scheme: Scheme) -> int:
    """``CodebookWeight.nbytes`` of a weight before it is fitted, if no two sub-vectors are equal.

    Args:
        shape: Shape of the weight.
        scheme: What would be done to it.

    Returns:
        Bytes of packed codes, codebooks and scales; a fit that reduces ``k`` takes fewer.

    Example:
        >>> from vq_plugin.schemes import PQ
        >>> expected_nbytes((64, 32), PQ(k=16, dim=4))
        1280
    """
    rows, length = matrix_view(torch.empty(shape, device="meta"), scheme.view_axis).shape
    dim, stages, groups, shared = 1, 1, 1, True
    if isinstance(scheme, PQ | RQ):
        dim = min(scheme.dim or length, length)
        stages = scheme.stages if isinstance(scheme, RQ) else 1
        shared = scheme.codebooks == "tensor"
    elif isinstance(scheme, KM) and scheme.group is not None:
        groups = -(-rows // scheme.group)
    subspaces = -(-length // dim)
    books = 1 if shared else subspaces
    k = min(scheme.k, -(-rows // groups) * subspaces // books)
    code_bytes = -(-stages * rows * subspaces * code_bits(k) // 8)
    scale_bytes = scheme.torch_codebook_dtype.itemsize * rows if scheme.scale == "row" else 0
    return code_bytes + codebook_nbytes((stages, groups, books, k, dim), scheme) + scale_bytes
