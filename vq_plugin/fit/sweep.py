"""One pass over a layer's inputs that chooses codes, each making up for the error of the others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from vq_plugin.fit.objective import Fitted, Objective
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.fit.stepwise import Stepwise
from vq_plugin.ops import fit as native

# Inputs after which the error reaches all others at once, as one matrix product.
_BLOCK = 128
# Outputs of one thread, and of one call of the native kernel.
_STRIP = 256
# Longer sub-vectors are few, and faster as matrix products.
_LONGEST_NATIVE = 64


class Chooser(Protocol):
    """Chooses the codes of some steps.

    Attributes:
        codes: The codes so far, ``(stages, rows, subspaces)``.
    """

    codes: Tensor

    def block(self, steps: Tensor, strip: slice, problem: Problem) -> Tensor:
        """Chooses codes for some outputs; returns ``base`` less the centers chosen."""
        ...


@dataclass(frozen=True)
class Problem:
    """Some steps of a sweep.

    Attributes:
        inner: How the error of an input (row) counts at the others, ``(groups, inputs, inputs)``.
        pull: What the errors so far ask of each, ``(groups, inputs, outputs)``.
        base: What stands there now, of the same shape.
        inverse: Of the blocks on the diagonal, ``(groups, steps, dim, dim)``.
        factor: Lower factor of every step's metric, of the same shape.
    """

    inner: Tensor
    pull: Tensor
    base: Tensor
    inverse: Tensor
    factor: Tensor


def own_blocks(matrix: Tensor, dim: int) -> Tensor:
    """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
    groups, inputs, _ = matrix.shape
    blocks = matrix.reshape(groups, inputs // dim, dim, inputs // dim, dim)
    return blocks.diagonal(0, 1, 3).permute(0, 3, 1, 2)


def sweep(
    objective: Objective,
    fitted: Fitted,
    *,
    order: Tensor,
    matrix: Tensor,
    factor: Tensor,
    base: Tensor,
    pull: Tensor,
    onward: bool,
) -> tuple[Tensor, Tensor]:
    """Assigns every step in turn to ``base`` + what the errors of the other inputs ask of it.

    Native kernels, where there are any, do what :class:`Stepwise` does in torch.

    Args:
        objective: Gives shapes, and the zeros that stay.
        fitted: Codes to start from, and codebooks.
        order: Of the steps.
        matrix: How the error of one input (row) counts at another, ``(groups, inputs, inputs)``;
            this and all below in that order.
        factor: Lower factor of every step's metric, ``(groups, steps, dim, dim)``.
        base: What stands there now, ``(groups, inputs, outputs)``.
        pull: ``matrixᵀ`` times the error of ``base``; becomes that of what is chosen.
        onward: Whether ``matrix`` is zero below the blocks on its diagonal.

    Returns:
        Codes of the shape of the former ones, int64, and ``base`` less the centers chosen.
    """
    dim = factor.shape[2]
    inverse = torch.linalg.inv(own_blocks(matrix, dim).double()).float()
    change = torch.empty_like(base)
    outputs, strip = base.shape[2], base.shape[2]
    chooser: Chooser
    if _native(fitted, dim):
        chooser = _Native(objective, fitted)
        unit = fitted.codebooks.shape[4] if objective.along_out else 1
        strip = -(-_STRIP // unit) * unit
    else:
        chooser = Stepwise(objective, fitted)
    step = max(1, _BLOCK // dim)

    def run(first: int) -> None:
        here = slice(first, min(first + strip, outputs))
        pulled, own = pull[:, :, here].contiguous(), base[:, :, here]
        for start in range(0, len(order), step):
            steps = slice(start, start + step)
            rows = slice(start * dim, (start + step) * dim)
            problem = Problem(
                matrix[:, rows, rows], pulled[:, rows], own[:, rows], inverse[:, steps],
                factor[:, steps],
            )  # fmt: skip
            found = chooser.block(order[steps], here, problem)
            change[:, rows, here] = found
            reached = slice(rows.start if onward else 0, None)
            pulled[:, reached].baddbmm_(matrix[:, rows, reached].mT, found)
        pull[:, :, here] = pulled

    deterministic_map(run, range(0, outputs, strip))
    return chooser.codes, change


def _native(fitted: Fitted, size: int) -> bool:
    _, _, _, k, dim = fitted.codebooks.shape
    return max(size, dim) <= _LONGEST_NATIVE and k <= native.MOST_CENTERS and native.native_fits()


class _Native:
    """Chooses by the native kernel."""

    def __init__(self, objective: Objective, fitted: Fitted) -> None:
        self.objective = objective
        self.codes = fitted.codes.long().clone()
        stages, groups, books, k, dim = fitted.codebooks.shape
        inputs, self.along_out = objective.weight.shape[1], objective.along_out
        self.dim, self.points = dim, objective.weight.shape[2] // (dim if self.along_out else 1)
        self.codebooks = fitted.codebooks.reshape(stages, groups * books, k, dim)
        self.by_step = not self.along_out and books > 1
        self.rows = objective.outputs
        if self.along_out and books > 1:
            self.rows = 1
        elif groups > 1:
            assert objective.row_group is not None
            self.rows = objective.row_group
        # (groups, stages, steps, points)
        if self.along_out:
            shape = (stages, inputs, -1, self.points)
            self.by_group = self.codes.view(shape).permute(2, 0, 1, 3)
        else:
            shape = (stages, -1, self.points, self.codes.shape[2])
            self.by_group = self.codes.view(shape).permute(1, 0, 3, 2)
        self.kept = None if objective.zeros is None else self._kept(objective.zeros)

    def _kept(self, zeros: Tensor) -> Tensor:
        is_zero = self.codebooks[0, :, :, 0] == 0
        code = torch.where(is_zero.any(1), is_zero.float().argmax(1), -1).int()
        groups, _, outputs = zeros.shape
        owner = torch.arange(groups * outputs) // self.rows
        return torch.where(zeros, code[owner].reshape(groups, 1, outputs), -1)

    def block(self, steps: Tensor, strip: slice, problem: Problem) -> Tensor:
        size = problem.factor.shape[2]
        codebooks = self.codebooks
        if self.by_step:
            codebooks = codebooks[:, steps]
        elif size > 1:
            # The metric differs from step to step.
            codebooks = codebooks.expand(-1, len(steps), -1, -1)
        scored, factor = codebooks, None
        if size > 1:
            factor = problem.factor.contiguous()
            scored = (codebooks @ factor.unsqueeze(1)).flatten(0, 1)
        unit = self.dim if self.along_out else 1
        own = slice(strip.start // unit, strip.stop // unit)
        several = len(codebooks) > 1
        before = self.by_group[:, :, steps, own].byte().contiguous() if several else None
        kept = None if self.kept is None else self.kept[:, steps, own].contiguous()
        padding = 0
        if self.along_out:
            padding = int(
                (self.objective.mass.reshape(len(problem.base), -1)[-1, strip] == 0).sum()
            )
        codes, change = native.sweep_block(
            problem.inner.contiguous(), problem.pull.contiguous(), problem.base.contiguous(),
            problem.inverse.contiguous(), factor, codebooks.contiguous(), scored.contiguous(),
            before, kept,
            native.Books(int(self.by_step or size > 1), own.start, self.points, self.rows),
            along_out=self.along_out, padding=padding,
        )  # fmt: skip
        self.by_group[:, :, steps, own] = codes.long()
        return change
