"""What the errors of a weight add up to: a quadratic form over the inputs of a layer.

``H`` is ``(inputs, inputs)`` in every group. It is kept as it is, or as a diagonal and few samples.
Errors are ``(groups, inputs, outputs)``; a *product* is what a form keeps of ``H·error`` between
two steps of a fit. It is linear in the error.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.fit.output.coupling import Coupling, Full, Semiseparable, block_slices
from vq_plugin.fit.parallel import deterministic_map, worker_pool

# Rows of a matrix product that one thread computes, and samples of one.
PRODUCT_ROWS = 512
_SAMPLES = 128


@dataclass(frozen=True)
class Dense:
    """``H`` in whole, ``(groups, inputs, inputs)``; a product is ``H·error``."""

    matrix: Tensor

    @property
    def diagonal(self) -> Tensor:
        """``(groups, inputs)``."""
        return self.matrix.diagonal(0, 1, 2)

    def row_errors(self, rows: Tensor) -> Tensor:
        """``row·H·rowᵀ`` of ``(groups, rows, inputs)``: float64 ``(groups, rows)``."""
        return ((rows @ self.matrix) * rows).sum(2, dtype=torch.float64)

    def damped(self, share: float, added: Tensor) -> Dense:
        """Less a share of what is off the diagonal, and something added to that."""
        matrix = self.matrix * (1 - share)
        matrix.diagonal(0, 1, 2).copy_(self.diagonal.clamp_min(0) + added)
        return Dense(matrix)

    def scaled(self, scale: Tensor | float) -> Dense:
        """For inputs that are ``scale`` times as large."""
        if isinstance(scale, Tensor):
            return Dense(self.matrix * scale.unsqueeze(1) * scale)
        return Dense(self.matrix * scale**2)

    def padded(self, count: int, value: Tensor) -> Dense:
        """With ``count`` more inputs that go with no others."""
        matrix = functional.pad(self.matrix, (0, count, 0, count))
        matrix.diagonal(0, 1, 2)[:, -count:] = value
        return Dense(matrix)

    def product(self, error: Tensor) -> Tensor:
        """What is kept of ``H·error``."""
        return row_product(self.matrix, error, PRODUCT_ROWS)

    def pull(self, error: Tensor, product: Tensor) -> Tensor:
        """``H·error``, half the gradient."""
        del error
        return product

    def by_output(self, error: Tensor, product: Tensor) -> Tensor:
        """``errorᵀ·H·error``: float64 ``(groups, outputs)``."""
        return (error * product).sum(1, dtype=torch.float64)

    def coupling(self, error: Tensor, product: Tensor, dim: int) -> Coupling:
        """How a sweep over errors that are there reaches the others, ``dim`` inputs a step."""
        del error, dim
        return Full(self.matrix, product.clone(), onward=False)

    def permuted(self, columns: Tensor) -> Dense:
        """With the inputs in another order."""
        return Dense(self.matrix[:, columns][:, :, columns])


@dataclass(frozen=True)
class LowRank:
    """``diag(own) + rowsᵀ·rows``; a product is ``rows·error``.

    For few samples, which cost less than their square: ``own`` is ``(groups, inputs)``, ``rows``
    ``(groups, samples, inputs)``.
    """

    own: Tensor
    rows: Tensor

    @property
    def diagonal(self) -> Tensor:
        """``(groups, inputs)``."""
        return self.own + self.rows.square().sum(1)

    def row_errors(self, rows: Tensor) -> Tensor:
        """``row·H·rowᵀ`` of ``(groups, rows, inputs)``: float64 ``(groups, rows)``."""
        seen = (rows @ self.rows.mT).square().sum(2, dtype=torch.float64)
        return seen + (rows.square() * self.own.unsqueeze(1)).sum(2, dtype=torch.float64)

    def damped(self, share: float, added: Tensor) -> LowRank:
        """Less a share of what is off the diagonal, and something added to that."""
        return LowRank(share * self.diagonal + added, self.rows * (1 - share) ** 0.5)

    def scaled(self, scale: Tensor | float) -> LowRank:
        """For inputs that are ``scale`` times as large."""
        return LowRank(self.own * scale**2, self.rows * scale)

    def padded(self, count: int, value: Tensor) -> LowRank:
        """With ``count`` more inputs that go with no others."""
        own = torch.cat([self.own, value.expand(-1, count)], 1)
        return LowRank(own, functional.pad(self.rows, (0, count)))

    def product(self, error: Tensor) -> Tensor:
        """What is kept of ``H·error``."""
        return row_product(self.rows, error, _SAMPLES)

    def pull(self, error: Tensor, product: Tensor) -> Tensor:
        """``H·error``, half the gradient."""
        return row_product(self.rows.mT, product, PRODUCT_ROWS).addcmul_(
            self.own.unsqueeze(2), error
        )

    def by_output(self, error: Tensor, product: Tensor) -> Tensor:
        """``errorᵀ·H·error``: float64 ``(groups, outputs)``."""

        def own(start: int) -> Tensor:
            some = slice(start, start + PRODUCT_ROWS)
            squares = error[:, some].square().mul_(self.own[:, some].unsqueeze(2))
            return squares.sum(1, dtype=torch.float64)

        total = product.square().sum(1, dtype=torch.float64)
        for part in deterministic_map(own, range(0, error.shape[1], PRODUCT_ROWS)):
            total += part
        return total

    def coupling(self, error: Tensor, product: Tensor, dim: int) -> Coupling:
        """How a sweep over errors that are there reaches the others, ``dim`` inputs a step."""
        inner = []
        for block in block_slices(self.own.shape[1], dim):
            rows = self.rows[:, :, block]
            inner.append(rows.mT @ rows + self.own[:, block].diag_embed())
        return Semiseparable(self.rows, self.rows, inner, self.own, error, product.clone())

    def permuted(self, columns: Tensor) -> LowRank:
        """With the inputs in another order."""
        return LowRank(self.own[:, columns], self.rows[:, :, columns])


Metric: TypeAlias = Dense | LowRank


def row_errors(metric: Metric, change: Tensor) -> Tensor:
    """What a change of a weight, of its shape, adds up to in every output: float64 ``(out,)``."""
    groups, inputs = metric.diagonal.shape
    rows = change.detach().cpu().float().reshape(groups, -1, inputs)
    # On one thread: a product may round differently on several.
    with worker_pool():
        return metric.row_errors(rows).flatten()


def row_product(left: Tensor, right: Tensor, step: int) -> Tensor:
    """A matrix product, ``step`` rows of it at a time, side by side."""
    groups, rows, _ = left.shape
    result = right.new_empty(groups, rows, right.shape[2])

    def fill(start: int) -> None:
        some = slice(start, start + step)
        result[:, some] = left[:, some] @ right

    deterministic_map(fill, range(0, rows, step))
    return result
