"""The error that compression makes in a layer's output, as a function of codes and codebooks."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.codebook import decode
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.schemes import Axis, Geometry, Scheme

# Few samples say little about how inputs go together, and nothing about inputs that they never
# showed: part of the correlation is not believed, and every input counts a little.
_SHRINKAGE = 0.1
_FLOOR = 1e-3
_ROUNDING = 1e-5
# What padding counts beside a true input or output.
_LEAST = 1e-8
# Rows of a matrix product that one thread computes.
PRODUCT_ROWS = 512


class Quantized(NamedTuple):
    """Codes, ``(stages, rows, subspaces)``, and codebooks, ``(stages, groups, books, k, dim)``."""

    codes: Tensor
    codebooks: Tensor


class Placed(NamedTuple):
    """Codes and codebooks, the error they leave, ``(groups, inputs, outputs)``, and its pull."""

    quantized: Quantized
    error: Tensor
    pull: Tensor


@dataclass(frozen=True)
class Objective:
    """``Σ_o mass_o · (w_o − q_o) H (w_o − q_o)ᵀ`` over the outputs o of a layer.

    Matrices are inputs first: what is assigned together, the weights of an input, is contiguous.
    Outputs (``axis="out"``) or inputs (``axis="in"``) are padded to whole sub-vectors; ``mass``,
    ``(outputs of all groups,)``, is 0 there. ``weight`` is normalized by its row scales,
    ``(groups, inputs, outputs)``, with the groups of a convolution; ``hessian`` the damped second
    moments, ``(groups, inputs, inputs)``, up to a factor; ``row_group`` rows share a codebook;
    ``zeros`` stay 0.
    """

    weight: Tensor
    hessian: Tensor
    mass: Tensor
    along_out: bool
    row_group: int | None
    zeros: Tensor | None

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
        if moments.second is None or not bool((moments.second.diagonal(0, 1, 2) > 0).any()):
            return None
        hessian = _scaled(damped(moments))
        along_out, dim = geometry.axis == "out", geometry.dim
        groups, inputs, _ = hessian.shape
        weight = matrix.T if along_out else matrix
        mass = moments.output_mass(len(weight))
        if row_scale is not None:
            wide = row_scale.float()
            # Dead rows have a scale of 0, which would leave inputs without moments.
            largest = wide.max().clamp_min(torch.finfo(torch.float32).tiny)
            scale = (wide / largest).clamp_min(_LEAST**0.5)
            if along_out:
                hessian = hessian * scale.unsqueeze(1) * scale
            else:
                mass = mass * scale.square()
        padding = -matrix.shape[1] % dim
        if along_out:
            if groups > 1 and len(weight) // groups % dim:
                return None
            weight = functional.pad(weight, (0, 0, 0, padding))
            mass = functional.pad(mass, (0, padding))
        elif padding:
            weight = functional.pad(weight, (0, padding))
            diagonal = hessian.diagonal(0, 1, 2).mean(1, keepdim=True) * _LEAST
            hessian = functional.pad(hessian, (0, padding, 0, padding))
            hessian.diagonal(0, 1, 2)[:, inputs:] = diagonal
        weight = weight.reshape(groups, -1, weight.shape[1]).transpose(1, 2).contiguous()
        zeros = scheme.pinned(weight)
        return cls(weight, hessian, mass, along_out, geometry.group, zeros)

    @property
    def shape(self) -> tuple[int, int, int]:
        """Groups, inputs and outputs of a group, padding included."""
        groups, inputs, outputs = self.weight.shape
        return groups, inputs, outputs

    def decode(self, quantized: Quantized) -> Tensor:
        """The weight that codes and codebooks stand for, of the shape of ``weight``."""
        groups, inputs, _ = self.weight.shape
        axis: Axis = "out" if self.along_out else "in"
        shape = (len(self.mass), inputs)
        matrix = decode(
            quantized.codes, quantized.codebooks, None, shape=shape, axis=axis, group=self.row_group
        )
        return matrix.reshape(groups, -1, inputs).transpose(1, 2).contiguous()

    def pull(self, error: Tensor) -> Tensor:
        """``H·error``, half the gradient with respect to the weight, where all outputs count 1."""
        result = torch.empty_like(error)

        def fill(start: int) -> None:
            rows = slice(start, start + PRODUCT_ROWS)
            result[:, rows] = self.hessian[:, rows] @ error

        deterministic_map(fill, range(0, error.shape[1], PRODUCT_ROWS))
        return result

    def place(self, quantized: Quantized) -> Placed:
        """What codes and codebooks are in this objective."""
        error = self.weight - self.decode(quantized)
        return Placed(quantized, error, self.pull(error))

    def value(self, placed: Placed) -> float:
        """The objective."""
        by_output = (placed.error * placed.pull).sum(1, dtype=torch.float64).flatten()
        return float(by_output @ self.mass.double())

    def gather(self, gradient: Tensor, quantized: Quantized) -> Tensor:
        """Sums of a gradient, ``(groups, inputs, outputs)``, over the weights of each center."""
        matrix = gradient.transpose(1, 2).reshape(len(self.mass), -1)
        view = matrix.T if self.along_out else matrix
        _, groups, books, k, dim = quantized.codebooks.shape
        points = self._by_book(view.reshape(len(view), -1, dim), groups, books)
        sums = []
        for codes in quantized.codes:
            by_book = self._by_book(codes.unsqueeze(2), groups, books).squeeze(2)
            means, count = best_kernels().means(Batch(points, None), by_book, k)
            sums.append((means * count).reshape(groups, books, k, dim))
        return torch.stack(sums)

    def _by_book(self, values: Tensor, groups: int, books: int) -> Tensor:
        """``(rows, subspaces, n)`` as ``(groups · books, members, n)``, padded with 0."""
        if books > 1:
            return values.transpose(0, 1).contiguous()
        if groups > 1:
            assert self.row_group is not None
            padding = groups * self.row_group - len(values)
            values = functional.pad(values, (0, 0, 0, 0, 0, padding))
        return values.reshape(groups, -1, values.shape[2])


def _scaled(hessian: Tensor) -> Tensor:
    """By the power of two that leaves the largest number near 1, which rounds nothing.

    Products with the numbers below float32's normal ones, of tiny inputs, take 100 times as long.
    """
    _, exponent = torch.frexp(hessian.abs().amax())
    shift = int(exponent.clamp(-126, 126))
    return hessian * math.ldexp(1.0, -shift)


def damped(moments: Moments) -> Tensor:
    """Second moments shrunk towards their diagonal (Ledoit & Wolf 2004), with a floor under it."""
    assert moments.second is not None
    centered = moments.centered()
    diagonal = centered.diagonal(0, 1, 2).clamp_min(0)
    # Of the raw moments: of an input that hardly varies the centered ones are rounding errors.
    raw = moments.second.cpu().diagonal(0, 1, 2)
    hessian = centered * (1 - _SHRINKAGE)
    hessian.diagonal(0, 1, 2).copy_(diagonal + _ROUNDING * raw + _FLOOR * raw.mean())
    return hessian
