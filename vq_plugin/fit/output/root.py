"""Roots ``H = M·Mᵀ`` of quadratic forms, with the inputs in the order of a sweep."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

from vq_plugin.fit.output.coupling import Coupling, Full, Semiseparable, block_slices
from vq_plugin.fit.output.metric import PRODUCT_ROWS, LowRank, Metric
from vq_plugin.fit.parallel import deterministic_map


@dataclass(frozen=True)
class DenseRoot:
    """M in whole, ``(groups, inputs, inputs)``, zero below the blocks on its diagonal."""

    matrix: Tensor
    columns: Tensor
    dim: int

    def coupling(self, base: Tensor) -> Coupling:
        """How a sweep whose errors are 0 at first reaches the inputs that come later."""
        return Full(self.matrix, torch.zeros_like(base), onward=True)

    def by_output(self, error: Tensor) -> Tensor:
        """``errorᵀ·H·error`` of errors in order, for half of what their product takes."""
        weighed = self._product(error, self.matrix.mT, onward=False)
        return weighed.square().sum(1, dtype=torch.float64)

    def product(self, state: Tensor) -> Tensor:
        """The product of :class:`Dense`, from the state that a sweep left."""
        result = torch.empty_like(state)
        result[:, self.columns] = self._product(state, self.matrix, onward=True)
        return result

    def _product(self, right: Tensor, left: Tensor, *, onward: bool) -> Tensor:
        """``left · right`` where ``left`` is zero before its diagonal blocks, or after them."""
        result = torch.empty_like(right)
        step = -(-PRODUCT_ROWS // self.dim) * self.dim

        def fill(start: int) -> None:
            rows = slice(start, min(start + step, right.shape[1]))
            columns = slice(rows.start, None) if onward else slice(0, rows.stop)
            result[:, rows] = left[:, rows, columns] @ right[:, columns]

        deterministic_map(fill, range(0, right.shape[1], step))
        return result


@dataclass(frozen=True)
class LowRankRoot:
    """M as ``rowsᵀ·reads`` after the blocks of a sweep, and ``inner`` within them.

    ``metric`` has the inputs in order.
    """

    metric: LowRank
    reads: Tensor
    inner: list[Tensor]

    def coupling(self, base: Tensor) -> Coupling:
        """How a sweep whose errors are 0 at first reaches the inputs that come later."""
        groups, samples, _ = self.reads.shape
        nothing = base.new_zeros(groups, samples, base.shape[2])
        none_there = base.new_zeros(1).expand(base.shape)
        return Semiseparable(
            self.metric.rows, self.reads, self.inner, self.metric.own, none_there, nothing
        )

    def by_output(self, error: Tensor) -> Tensor:
        """``errorᵀ·H·error`` of errors in order."""
        return self.metric.by_output(error, self.metric.product(error))

    def product(self, state: Tensor) -> Tensor:
        """The product of :class:`LowRank`, from the state that a sweep left."""
        return state


Root: TypeAlias = DenseRoot | LowRankRoot


def root_of(metric: Metric, order: Tensor, dim: int) -> Root:
    """The root for steps of ``dim`` inputs in an order."""
    columns = step_columns(order, dim)
    if isinstance(metric, LowRank):
        return _low_rank_root(metric.permuted(columns), dim)
    backward = step_columns(order.flip(0), dim)
    permuted = metric.permuted(backward).matrix.double()
    return DenseRoot(_upper(permuted, dim).float(), columns, dim)


def step_columns(steps: Tensor, dim: int) -> Tensor:
    """The inputs of steps."""
    return (steps.unsqueeze(1) * dim + torch.arange(dim)).flatten()


def _upper(backward: Tensor, dim: int) -> Tensor:
    """The root of a matrix whose steps stand from the last to the first, these in order.

    What LAPACK factors from the first input to the last is taken from the last to the first.
    """
    return _forward(torch.linalg.cholesky(backward), dim)


def _forward(lower: Tensor, dim: int) -> Tensor:
    """A matrix whose steps stand from the last to the first, with these in order."""
    groups, inputs, _ = lower.shape
    by_step = lower.reshape(groups, inputs // dim, dim, inputs // dim, dim)
    return by_step.flip(1, 3).reshape(groups, inputs, inputs)


def _low_rank_root(metric: LowRank, dim: int) -> LowRankRoot:
    """Block by block, from the last to the first.

    Without the inputs of later blocks, ``diag(own) + rowsᵀ·left·rows`` is left of H (their Schur
    complement), with a matrix ``left`` of samples that starts as the identity (Woodbury 1950).
    """
    own, rows = metric.own.double(), metric.rows.double()
    left = torch.eye(rows.shape[1], dtype=rows.dtype, device=rows.device).expand(len(rows), -1, -1)
    reads, inner = torch.empty_like(metric.rows), []
    for block in reversed(block_slices(own.shape[1], dim)):
        some = rows[:, :, block]
        weighed = left @ some
        schur = some.mT @ weighed + own[:, block].diag_embed()
        steps = torch.arange(schur.shape[1] // dim)
        backward = step_columns(steps.flip(0), dim)
        lower = torch.linalg.cholesky(schur[:, backward][:, :, backward])
        read = torch.linalg.solve_triangular(lower, weighed.mT[:, backward], upper=False).mT
        left = torch.baddbmm(left, read, read.mT, alpha=-1)
        # The steps turned around twice are in order again.
        reads[:, :, block] = read[:, :, backward].float()
        inner.append(_forward(lower, dim).float())
    return LowRankRoot(metric, reads, inner[::-1])
