"""How the error of one input counts at the others while a sweep goes from input to input."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TypeAlias

import torch
from torch import Tensor

# Inputs after which the error reaches all others at once, as one matrix product.
_BLOCK = 128


def block_slices(inputs: int, dim: int) -> list[slice]:
    """The inputs that a sweep takes at once, in steps of ``dim``."""
    step = max(1, _BLOCK // dim) * dim
    return [slice(start, min(start + step, inputs)) for start in range(0, inputs, step)]


def diagonal_blocks(matrix: Tensor, dim: int) -> Tensor:
    """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
    groups, inputs, _ = matrix.shape
    blocks = matrix.reshape(groups, inputs // dim, dim, inputs // dim, dim)
    return blocks.diagonal(0, 1, 3).permute(0, 3, 1, 2)


@dataclass(frozen=True)
class Full:
    """By a matrix in whole: how the error of an input (row) counts at another.

    ``matrix`` is ``(groups, inputs, inputs)``; ``onward`` says that it is zero below the blocks on
    its diagonal. ``state`` is ``matrixᵀ`` times the errors, ``(groups, inputs, outputs)``.
    """

    matrix: Tensor
    state: Tensor
    onward: bool

    def blocks(self, dim: int) -> Tensor:
        """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
        return diagonal_blocks(self.matrix, dim)

    def inner(self, block: slice) -> Tensor:
        """The part of the matrix within a block of a sweep."""
        return self.matrix[:, block, block]

    def pull(self, state: Tensor, block: slice, outputs: slice) -> Tensor:
        """What the errors so far ask of a block, for the outputs that ``state`` is of."""
        del outputs
        return state[:, block]

    def reach(self, state: Tensor, block: slice, change: Tensor) -> None:
        """Lets a change of the errors of a block count at all others, in ``state``."""
        reached = slice(block.start if self.onward else 0, None)
        state[:, reached].baddbmm_(self.matrix[:, block, reached].mT, change)


@dataclass(frozen=True)
class Semiseparable:
    """By ``writesᵀ·reads`` outside the blocks of a sweep, which ``inner`` has.

    Both are ``(groups, samples, inputs)``, ``state`` is ``writes`` times the errors,
    ``(groups, samples, outputs)``. Errors that were there, ``(groups, inputs, outputs)``, ask
    ``own`` times as much of their own input beside that, ``(groups, inputs)``.
    """

    writes: Tensor
    reads: Tensor
    inner_blocks: Sequence[Tensor]
    own: Tensor
    error: Tensor
    state: Tensor

    def blocks(self, dim: int) -> Tensor:
        """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
        return torch.cat([diagonal_blocks(inner, dim) for inner in self.inner_blocks], 1)

    def inner(self, block: slice) -> Tensor:
        """The part of the matrix within a block of a sweep."""
        at: int = block.start // self.inner_blocks[0].shape[1]
        return self.inner_blocks[at]

    def pull(self, state: Tensor, block: slice, outputs: slice) -> Tensor:
        """What the errors so far ask of a block, for the outputs that ``state`` is of."""
        local = self.error[:, block, outputs] * self.own[:, block].unsqueeze(2)
        return torch.baddbmm(local, self.reads[:, :, block].mT, state)

    def reach(self, state: Tensor, block: slice, change: Tensor) -> None:
        """Lets a change of the errors of a block count at all others, in ``state``."""
        state.baddbmm_(self.writes[:, :, block], change)


Coupling: TypeAlias = Full | Semiseparable
