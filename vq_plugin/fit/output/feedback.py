"""Codes chosen input by input, each making up for the error of the others."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.output.objective import PRODUCT_ROWS, Objective, Placed, Quantized
from vq_plugin.fit.output.sweep import diagonal_blocks, sweep
from vq_plugin.fit.parallel import deterministic_map


@dataclass(frozen=True)
class Factor:
    """``H = M·Mᵀ`` with the steps in order, the largest inputs first, and ``columns`` their inputs.

    M is ``(groups, inputs, inputs)``, zero below the blocks on its diagonal.
    """

    order: Tensor
    columns: Tensor
    matrix: Tensor

    @classmethod
    def of(cls, objective: Objective, quantized: Quantized) -> Factor:
        """Of the second moments of an objective, for steps as long as its codebooks want them."""
        hessian, dim = objective.hessian, _step_length(objective, quantized)
        size = hessian.diagonal(0, 1, 2).sum(0).reshape(-1, dim).sum(1)
        order = size.argsort(descending=True, stable=True)
        # What LAPACK factors from the first input to the last is taken from the last to the first.
        columns = _columns(order.flip(0), dim)
        permuted = hessian[:, columns][:, :, columns].double()
        lower = torch.linalg.cholesky(permuted).float()
        groups, inputs, _ = lower.shape
        by_step = lower.reshape(groups, len(order), dim, len(order), dim)
        matrix = by_step.flip(1, 3).reshape(groups, inputs, inputs)
        return cls(order, _columns(order, dim), matrix)

    @property
    def dim(self) -> int:
        """Inputs of a step."""
        return len(self.columns) // len(self.order)

    def value(self, objective: Objective, quantized: Quantized) -> float:
        """The objective of codes and codebooks, for half of what their pull takes."""
        error = (objective.weight - objective.decode(quantized))[:, self.columns]
        weighed = self._product(error, self.matrix.mT, onward=False)
        return objective.value(Placed(quantized, weighed, weighed))

    def pull(self, weighed: Tensor) -> Tensor:
        """``H·error``, of the inputs in the factor's order, from ``Mᵀ·error``."""
        return self._product(weighed, self.matrix, onward=True)

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


def feedback(objective: Objective, quantized: Quantized, factor: Factor) -> Placed:
    """Assigns codes to one input (or ``dim`` of them) after the other, largest inputs first.

    With ``H = M·Mᵀ`` the objective is ``Σ_j ‖e_j·M_jj + Σ_i e_i·M_ij‖²``, where i runs over the
    inputs before j: each input sees the errors that its choice can make up for. That is GPTQ
    (Frantar et al. 2022, arXiv 2210.17323) without an inverse, and for sub-vectors along the inputs
    GPTVQ (van Baalen et al. 2024, arXiv 2402.15319) with the metric ``M_jj·M_jjᵀ``. Codebooks stay.
    """
    base = objective.weight[:, factor.columns]
    weighed = torch.zeros_like(base)
    codes, change = sweep(
        objective, quantized, order=factor.order, matrix=factor.matrix,
        factor=diagonal_blocks(factor.matrix, factor.dim), base=base, pull=weighed, onward=True,
    )  # fmt: skip
    error, pull = torch.empty_like(change), torch.empty_like(change)
    error[:, factor.columns] = change
    pull[:, factor.columns] = factor.pull(weighed)
    return Placed(Quantized(codes, quantized.codebooks), error, pull)


def descend(objective: Objective, placed: Placed) -> Placed:
    """Assigns codes to one input (or ``dim`` of them) at a time, all others being as they are.

    Coordinate descent on the objective: each choice is the best one for the errors of all other
    inputs. Codebooks stay.
    """
    dim = _step_length(objective, placed.quantized)
    hessian, pull = objective.hessian, placed.pull.clone()
    factor = torch.linalg.cholesky(diagonal_blocks(hessian, dim).double()).float()
    codes, change = sweep(
        objective, placed.quantized, order=torch.arange(factor.shape[1]), matrix=hessian,
        factor=factor, base=objective.weight - placed.error, pull=pull,
        onward=False,
    )  # fmt: skip
    return Placed(Quantized(codes, placed.quantized.codebooks), placed.error + change, pull)


def _step_length(objective: Objective, quantized: Quantized) -> int:
    return 1 if objective.along_out else quantized.codebooks.shape[4]


def _columns(steps: Tensor, dim: int) -> Tensor:
    return (steps.unsqueeze(1) * dim + torch.arange(dim)).flatten()
