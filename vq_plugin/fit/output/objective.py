"""The error that compression makes in a layer's output, as a function of codes and codebooks."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.codebook import decode
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.output.across import Across
from vq_plugin.fit.output.metric import Metric
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.schemes import Geometry, Scheme

# Few samples say little about how inputs go together, and nothing about inputs that they never
# showed: part of the correlation is not believed, and every input counts a little.
_SHRINKAGE = 0.1
_FLOOR = 1e-3
_ROUNDING = 1e-5
# Rows of a view that one thread turns or decodes.
_ROWS = 128
# What padding counts beside a true input or output.
_LEAST = 1e-8


class Quantized(NamedTuple):
    """Codes, ``(stages, rows, subspaces)``, and codebooks, ``(stages, groups, books, k, dim)``."""

    codes: Tensor
    codebooks: Tensor


class Placed(NamedTuple):
    """Codes and codebooks, the error they leave, ``(groups, inputs, outputs)``, and its product."""

    quantized: Quantized
    error: Tensor
    product: Tensor


@dataclass(frozen=True)
class Objective:
    """``Σ_o mass_o · (w_o − q_o) H (w_o − q_o)ᵀ`` over the outputs o of a layer.

    Matrices are inputs first: what is assigned together, the weights of an input, is contiguous.
    Outputs (``axis="out"``) or inputs (``axis="in"``) are padded to whole sub-vectors; ``mass``,
    ``(outputs of all groups,)``, is 0 there. ``weight`` is normalized by its row scales,
    ``(groups, inputs, outputs)``, with the groups of a convolution; ``metric`` H, the damped second
    moments up to a factor; ``row_group`` rows share a codebook; ``zeros`` stay 0. ``across`` is
    what outputs do together, where that is known, and each has its codes and inputs to itself: not
    with sub-vectors along the outputs, groups of a convolution, or codebooks of groups of rows.
    """

    weight: Tensor
    metric: Metric
    mass: Tensor
    along_out: bool
    row_group: int | None
    zeros: Tensor | None
    across: Across | None = None

    @classmethod
    def build(
        cls,
        matrix: Tensor,
        row_scale: Tensor | None,
        scheme: Scheme,
        geometry: Geometry,
        moments: Moments,
    ) -> Objective | None:
        """For the 2-D view of a weight, divided by its row scales, and its layer's inputs.

        ``None`` where second moments are not known or all 0, or where sub-vectors along the outputs
        reach from one group of a convolution into the next.
        """
        if moments.second is None or not bool((moments.raw().diagonal > 0).any()):
            return None
        metric = _scaled(damped(moments))
        along_out, dim = geometry.axis == "out", geometry.dim
        groups = len(metric.diagonal)
        weight = matrix.T if along_out else matrix
        mass = moments.output_mass(len(weight))
        if row_scale is not None:
            wide = row_scale.float()
            # Dead rows have a scale of 0, which would leave inputs without moments.
            largest = wide.max().clamp_min(torch.finfo(torch.float32).tiny)
            scale = (wide / largest).clamp_min(_LEAST**0.5)
            if along_out:
                metric = metric.scaled(scale)
            else:
                mass = mass * scale.square()
        positions = geometry.positions
        padding = -(matrix.shape[1] // positions) % dim
        if along_out:
            if groups > 1 and len(weight) // groups % dim:
                return None
            weight = functional.pad(weight, (0, 0, 0, padding))
            mass = functional.pad(mass, (0, padding))
        elif padding or positions > 1:
            count = padding * positions
            if count:
                least = metric.diagonal.mean(1, keepdim=True) * _LEAST
                metric = metric.padded(count, least)
                weight = functional.pad(geometry.pieces(weight), (0, padding))
                weight = weight.reshape(geometry.rows, -1)
            # Moments have the kernel positions of a channel side by side.
            channels = torch.arange(matrix.shape[1]).reshape(-1, positions).T
            added = torch.arange(matrix.shape[1], weight.shape[1]).reshape(positions, -1)
            metric = metric.permuted(torch.cat([channels, added], 1).flatten())
        weight = _turned(weight.reshape(groups, -1, weight.shape[1]))
        zeros = scheme.pinned(weight)
        across = None
        if moments.together is not None and groups == 1 and not along_out and not geometry.group:
            across = Across.of(moments.together, row_scale)
        return cls(weight, metric, mass, along_out, geometry.group, zeros, across)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, inputs and outputs of a group, padding included."""
        groups, inputs, outputs = self.weight.shape
        return groups, inputs, outputs

    def decode(self, quantized: Quantized) -> Tensor:
        """The weight that codes and codebooks stand for, of the shape of ``weight``."""
        codes, codebooks = quantized
        matrix = self.weight.new_empty(self.weight.shape[1], len(self.mass))
        view = matrix if self.along_out else matrix.T
        # Whole groups of rows, as each has codebooks of its own.
        group = self.row_group or 1
        step = -(-_ROWS // group) * group

        def fill(start: int) -> None:
            rows = slice(start, start + step)
            own = codebooks
            if self.row_group is not None:
                own = codebooks[:, start // group : -(-rows.stop // group)]
            # Padding included: rows of the view are rows of what is decoded.
            view[rows] = decode(
                codes[:, rows], own, None, shape=view[rows].shape, axis="in", group=self.row_group
            )

        deterministic_map(fill, range(0, len(view), step))
        groups = len(self.weight)
        return matrix.reshape(len(matrix), groups, -1).transpose(0, 1).contiguous()

    def error(self, quantized: Quantized) -> Tensor:
        """What codes and codebooks leave of the weight."""
        decoded = self.decode(quantized)
        return torch.sub(self.weight, decoded, out=decoded)

    def place(self, quantized: Quantized) -> Placed:
        """What codes and codebooks are in this objective."""
        error = self.error(quantized)
        return Placed(quantized, error, self.metric.product(error))

    def value(self, placed: Placed) -> float:
        """The objective."""
        return self.total(self.metric.by_output(placed.error, placed.product))

    def total(self, by_output: Tensor) -> float:
        """Of what outputs add to it, float64 ``(groups, outputs)``, where all count 1."""
        return float(by_output.flatten() @ self.mass.double())

    def gather(self, gradient: Callable[[slice], Tensor], quantized: Quantized) -> Tensor:
        """Sums of a gradient, times the mass of its outputs, over the weights of each center.

        ``gradient`` gives that of some outputs of every group, ``(groups, inputs, outputs)``, and
        broadcasts to it.
        """
        view = self._weighed(gradient)
        _, groups, books, k, dim = quantized.codebooks.shape
        points = self._by_book(view.reshape(len(view), -1, dim), groups, books)
        sums = []
        for codes in quantized.codes:
            by_book = self._by_book(codes.unsqueeze(2), groups, books).squeeze(2)
            means, count = best_kernels().means(Batch(points, None), by_book, k)
            sums.append((means * count).reshape(groups, books, k, dim))
        return torch.stack(sums)

    def _weighed(self, gradient: Callable[[slice], Tensor]) -> Tensor:
        """A gradient times the mass of its outputs, as the view of the weight has it."""
        groups, inputs, outputs = self.shape
        mass = self.mass.reshape(groups, 1, outputs)
        turned = self.weight.new_empty(groups, outputs, inputs)

        def fill(start: int) -> None:
            some = slice(start, start + _ROWS)
            turned[:, some] = _turned(gradient(some) * mass[:, :, some])

        deterministic_map(fill, range(0, outputs, _ROWS))
        matrix = turned.reshape(groups * outputs, inputs)
        return matrix.T if self.along_out else matrix

    def _by_book(self, values: Tensor, groups: int, books: int) -> Tensor:
        """``(rows, subspaces, n)`` as ``(groups · books, members, n)``, padded with 0."""
        if books > 1:
            return values.reshape(-1, books, values.shape[2]).transpose(0, 1).contiguous()
        if groups > 1:
            assert self.row_group is not None
            padding = groups * self.row_group - len(values)
            values = functional.pad(values, (0, 0, 0, 0, 0, padding))
        return values.reshape(groups, -1, values.shape[2])


def _turned(matrices: Tensor) -> Tensor:
    if len(matrices) == 1:
        # Torch turns a single matrix in tiles, which takes a fifth of the time.
        return matrices[0].T.contiguous().unsqueeze(0)
    return matrices.mT.contiguous()


def _scaled(metric: Metric) -> Metric:
    """By an even power of two that leaves the largest number near 1, which rounds nothing.

    Products with the numbers below float32's normal ones, of tiny inputs, take 100 times as long.
    """
    # No number of a positive form is larger than those on its diagonal.
    _, exponent = torch.frexp(metric.diagonal.amax())
    shift = int(exponent.clamp(-126, 126)) // 2
    return metric.scaled(math.ldexp(1.0, -shift))


def damped(moments: Moments) -> Metric:
    """Second moments shrunk towards their diagonal (Ledoit & Wolf 2004), with a floor under it."""
    # Of the raw moments: of an input that hardly varies the centered ones are rounding errors.
    raw = moments.raw().diagonal
    return moments.centered().damped(_SHRINKAGE, _ROUNDING * raw + _FLOOR * raw.mean())
