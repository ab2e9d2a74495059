"""One pass over a layer's inputs that chooses codes, each making up for the error of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.kernels.protocol import Sweep, SweepBlock
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.parallel import deterministic_map

# Inputs after which the error reaches all others at once, as one matrix product.
_BLOCK = 128


def diagonal_blocks(matrix: Tensor, dim: int) -> Tensor:
    """The blocks on the diagonal, ``(groups, steps, dim, dim)``."""
    groups, inputs, _ = matrix.shape
    blocks = matrix.reshape(groups, inputs // dim, dim, inputs // dim, dim)
    return blocks.diagonal(0, 1, 3).permute(0, 3, 1, 2)


def sweep(
    objective: Objective,
    quantized: Quantized,
    *,
    order: Tensor,
    matrix: Tensor,
    factor: Tensor,
    base: Tensor,
    pull: Tensor,
    onward: bool,
) -> tuple[Tensor, Tensor]:
    """Assigns every step in turn to ``base`` + what the errors of the other inputs ask of it.

    ``matrix``, how the error of one input (row) counts at another, ``(groups, inputs, inputs)``,
    and all below are in ``order``: each step's lower ``factor``, ``(groups, steps, dim, dim)``,
    ``base`` and ``pull``, ``matrixᵀ`` times its error, ``(groups, inputs, outputs)``. ``onward``
    says that ``matrix`` is zero below the blocks on its diagonal. ``pull`` becomes that of what is
    chosen. Gives codes, int64, and ``base`` less the centers chosen.
    """
    dim = factor.shape[2]
    inverse = torch.linalg.inv(diagonal_blocks(matrix, dim).double()).float()
    change = torch.empty_like(base)
    outputs = base.shape[2]
    chooser = best_kernels().chooser(
        Sweep(
            codes=quantized.codes, codebooks=quantized.codebooks, shape=objective.shape,
            mass=objective.mass, along_out=objective.along_out, row_group=objective.row_group,
            zeros=objective.zeros,
        )
    )  # fmt: skip
    step = max(1, _BLOCK // dim)

    def run(first: int) -> None:
        strip = slice(first, min(first + chooser.strip, outputs))
        strip_pull, strip_base = pull[:, :, strip].contiguous(), base[:, :, strip]
        for start in range(0, len(order), step):
            steps = slice(start, start + step)
            rows = slice(start * dim, (start + step) * dim)
            block = SweepBlock(
                matrix[:, rows, rows], strip_pull[:, rows], strip_base[:, rows],
                inverse[:, steps], factor[:, steps],
            )  # fmt: skip
            error = chooser.choose(order[steps], strip, block)
            change[:, rows, strip] = error
            reached = slice(rows.start if onward else 0, None)
            strip_pull[:, reached].baddbmm_(matrix[:, rows, reached].mT, error)
        pull[:, :, strip] = strip_pull

    deterministic_map(run, range(0, outputs, chooser.strip))
    return chooser.codes, change
