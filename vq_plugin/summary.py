"""What a compressed model consists of, layer by layer."""

from __future__ import annotations

import math
import os
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from vq_plugin.checkpoint import Rest, check_rest, rest_tensors
from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize import factorized_away
from vq_plugin.folding import foldable_nbytes
from vq_plugin.left_float import FloatWeight, left_float
from vq_plugin.nn import CodedWeight, coded_weights
from vq_plugin.nn.slots import shown
from vq_plugin.select import check_model
from vq_plugin.sizes import file_nbytes, float_nbytes, stored_nbytes, weight_float_nbytes
from vq_plugin.table import format_bytes, format_table


@dataclass(frozen=True)
class LayerRow:
    """One coded weight.

    Attributes:
        name: Name of its slot: of the layer, or of module and parameter.
        kind: Class of the layer, or of the module that holds it.
        shape: Shape of the weight.
        scheme: The scheme as text.
        bits_per_weight: Bits of codes, codebooks and scales over the number of weights.
        nbytes: Bytes of codes of fixed length, codebooks and scales; 0 where they are counted in
            another row.
        file_nbytes: The same in a file, where codes are entropy-coded if that is smaller; up to 8
            too many.
        float_nbytes: Bytes of the weight in float32; 0 likewise.
        note: What is worth knowing, such as a reduced ``k``, or where the bits of a pruned layer
            go.
    """

    name: str
    kind: str
    shape: tuple[int, ...]
    scheme: str
    bits_per_weight: float
    nbytes: int
    file_nbytes: int
    float_nbytes: int
    note: str


@dataclass(frozen=True)
class Summary:
    """Sizes of a compressed model; prints as a table.

    Attributes:
        rows: One row a coded weight.
        other_nbytes: Bytes of everything else in the ``state_dict``: biases, norms, layers left.
        other_float_nbytes: The same in float32 (integer tensors as they are).
        left: Weights of more than 1 % of the model that stayed in float, and why.
        foldable_nbytes: Bytes that :func:`vq_plugin.fold_batch_norms` would save in a file, by the
            order of modules: the model is not called.
        factorized_nbytes: Bytes in float32 that factorizing has saved before anything was coded.
    """

    rows: tuple[LayerRow, ...]
    other_nbytes: int
    other_float_nbytes: int
    left: tuple[FloatWeight, ...] = ()
    foldable_nbytes: int = 0
    factorized_nbytes: int = 0

    @property
    def nbytes(self) -> int:
        """Bytes of the compressed weights: codes of fixed length, codebooks and scales."""
        return sum(row.nbytes for row in self.rows)

    @property
    def file_nbytes(self) -> int:
        """Bytes of the compressed weights in a file, without its header."""
        return sum(row.file_nbytes for row in self.rows)

    @property
    def float_nbytes(self) -> int:
        """Bytes of the same weights in float32."""
        return sum(row.float_nbytes for row in self.rows)

    @property
    def layer_rate(self) -> float:
        """Float32 bytes over ``nbytes``, of the compressed weights alone; factors: of the layer."""
        return self._layers_nbytes / self.nbytes if self.nbytes else math.inf

    @property
    def file_layer_rate(self) -> float:
        """The same over ``file_nbytes``."""
        return self._layers_nbytes / self.file_nbytes if self.file_nbytes else math.inf

    @property
    def _layers_nbytes(self) -> int:
        """Bytes in float32 of the compressed layers, as they were before they were factorized."""
        return self.float_nbytes + self.factorized_nbytes

    @property
    def model_float_nbytes(self) -> int:
        """Bytes of the whole model in float32, as it was before it was factorized."""
        return self._layers_nbytes + self.other_float_nbytes

    @property
    def model_file_nbytes(self) -> int:
        """Bytes of the whole model in a file, without its header."""
        return self.file_nbytes + self.other_nbytes

    def file_rate(self, path: str | os.PathLike[str]) -> float:
        """Float32 bytes of the whole model over the bytes of the file at ``path``."""
        return self.model_float_nbytes / os.stat(path).st_size

    def __str__(self) -> str:
        body = [
            [
                row.name or "(model)",
                row.kind,
                "x".join(map(str, row.shape)),
                row.scheme,
                f"{row.bits_per_weight:.2f}",
                format_bytes(row.nbytes),
                f"{row.float_nbytes / row.nbytes:.1f}x" if row.nbytes else "",
                format_bytes(row.file_nbytes),
                row.note,
            ]
            for row in self.rows
        ]
        header = ["layer", "kind", "shape", "scheme", "bits/weight", "size", "rate", "file", "note"]
        if not any(row.note for row in self.rows):
            header, body = header[:-1], [line[:-1] for line in body]
        total = (
            f"compressed weights: {format_bytes(self._layers_nbytes)} -> "
            f"{format_bytes(self.nbytes)} (layer rate {self.layer_rate:.1f}x), "
            f"{format_bytes(self.file_nbytes)} in a file; "
            f"everything else: {format_bytes(self.other_nbytes)}"
        )
        if not self.rows:
            total = "no weight is compressed"
        whole = (
            f"whole model: {format_bytes(self.model_float_nbytes)} -> "
            f"{format_bytes(self.model_file_nbytes)} in a file "
            f"(file rate {self.model_float_nbytes / max(self.model_file_nbytes, 1):.2f}x)"
        )
        lines = [format_table(header, body, right=(4, 5, 6, 7)), whole, total]
        if self.left:
            share = sum(weight.nbytes for weight in self.left) / max(self.model_file_nbytes, 1)
            most = f", {100 * share:.0f} % of the file" * (share > 0.5)
            lines.append(f"left in float{most}:")
            lines += [f"  {w.name}: {format_bytes(w.nbytes)}, {w.reason}" for w in self.left]
        if self.foldable_nbytes > 0:
            lines.append(
                f"batch norms could be folded into the layers before: fold=True saves about "
                f"{format_bytes(self.foldable_nbytes)} in a file"
            )
        return "\n".join(lines)

    __repr__ = __str__


@cpu_by_default()
def summary(model: nn.Module, *, rest: Rest | None = None) -> Summary:
    """Sizes of the coded weights of a model, and of the rest.

    Args:
        model: A model from :func:`vq_plugin.compress`, :func:`vq_plugin.load` or a host.
        rest: As for :func:`vq_plugin.save`: what everything else takes in such a file.

    Returns:
        The summary; weights that several layers share count once. Sizes in a file take about
        0.01 s per million codes.

    Raises:
        ValueError: If a coded weight is on the meta device.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(32, 32, bias=False), vq.KM(k=16))
        >>> print(vq.summary(small))
        layer    kind            shape  scheme    bits/weight   size  rate   file
        -------------------------------------------------------------------------
        (model)  CodebookLinear  32x32  km(k=16)         4.25  544 B  7.5x  544 B
        whole model: 4.1 kB -> 544 B in a file (file rate 7.53x)
        compressed weights: 4.1 kB -> 544 B (layer rate 7.5x), 544 B in a file; everything else: 0 B
    """
    check_rest(rest)
    check_model(model)
    rows: list[LayerRow] = []
    counted: dict[int, str] = {}
    for name, coded in coded_weights(model).items():
        if coded.codebooks.is_meta:
            raise ValueError(f"{shown(name)} is on the meta device: there are no codes to count")
        tied = counted.setdefault(id(coded.codebooks), name)
        rows.append(_row(name, coded, "" if tied == name else f"tied to {tied}"))
    others = rest_tensors(model).values()
    return Summary(
        tuple(rows),
        stored_nbytes(others, rest, model),
        float_nbytes(others),
        left_float(model),
        foldable_nbytes(model),
        weight_float_nbytes([factorized_away(model)]),
    )


def _row(name: str, layer: CodedWeight, tied: str) -> LayerRow:
    small = layer.codebook_weight
    pruned = "" if tied else _where_and_which(small)
    asked = layer.scheme.k
    reduced = f"k {asked} -> {small.k}: no weight has the others" if small.k < asked else ""
    float_size = weight_float_nbytes(small.shape)
    larger = "larger than float32" if small.nbytes > float_size else ""
    return LayerRow(
        name=name,
        kind=layer.kind,
        shape=small.shape,
        scheme=str(layer.scheme),
        bits_per_weight=small.bits_per_weight,
        nbytes=0 if tied else small.nbytes,
        file_nbytes=0 if tied else file_nbytes(small),
        float_nbytes=0 if tied else float_size,
        note="; ".join(filter(None, (reduced, larger, pruned, tied))),
    )


def _where_and_which(small: CodebookWeight) -> str:
    """What pruned weights cost: to say where the others are, and which value each of them has.

    By the entropy of the codes, ``H(code) = H(zero or not) + P(not zero) · H(code | not zero)``.
    """
    pinned, geometry = small.scheme.pinned(small.codebooks), small.geometry
    if pinned is None or geometry.dim > 1 or geometry.stages > 1 or not geometry.shared:
        return ""
    group = geometry.group or geometry.rows
    zero = pinned[0, :, 0, :, 0]
    counts = torch.stack(
        [
            small.codes[0, start : start + group].flatten().int().bincount(minlength=small.k)
            for start in range(0, small.codes.shape[1], group)
        ]
    )
    zeros = int(counts[zero].sum())
    if not zeros:
        return ""
    count, rest = small.codes.numel(), counts.masked_fill(zero, 0).flatten()
    where = _entropy(torch.tensor([zeros, count - zeros]))
    which = _entropy(rest) * (count - zeros) / count
    return f"{100 * zeros / count:.1f} % zeros: {where:.2f} bits/weight where, {which:.2f} which"


def _entropy(counts: Tensor) -> float:
    """Bits per symbol."""
    shares = counts[counts > 0] / counts.sum()
    return -float((shares * shares.log2()).sum())
