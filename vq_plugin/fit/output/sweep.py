"""One pass over a layer's inputs that chooses codes, each making up for the error of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.kernels.protocol import Sweep, SweepBlock
from vq_plugin.fit.output.coupling import Coupling, block_slices
from vq_plugin.fit.output.objective import Objective, Quantized
from vq_plugin.fit.parallel import deterministic_map


def sweep(
    objective: Objective,
    quantized: Quantized,
    *,
    order: Tensor,
    coupling: Coupling,
    factor: Tensor,
    base: Tensor,
) -> tuple[Tensor, Tensor]:
    """Assigns every step in turn to ``base`` + what the errors of the other inputs ask of it.

    ``coupling``, how the error of one input counts at another, and all below are in ``order``: each
    step's lower ``factor``, ``(groups, steps, dim, dim)``, and ``base``,
    ``(groups, inputs, outputs)``. The coupling's state becomes that of what is chosen. Gives codes
    and ``base`` less the centers chosen.
    """
    dim = factor.shape[2]
    inverse = torch.linalg.inv(coupling.blocks(dim).double()).float()
    change = torch.empty_like(base)
    outputs = base.shape[2]
    chooser = best_kernels().chooser(
        Sweep(
            codes=quantized.codes, codebooks=quantized.codebooks, shape=objective.shape,
            mass=objective.mass, along_out=objective.along_out, row_group=objective.row_group,
            zeros=objective.zeros,
        )
    )  # fmt: skip
    blocks = block_slices(base.shape[1], dim)

    def run(first: int) -> None:
        strip = slice(first, min(first + chooser.strip, outputs))
        state, strip_base = coupling.state[:, :, strip].contiguous(), base[:, :, strip]
        for rows in blocks:
            steps = slice(rows.start // dim, rows.stop // dim)
            block = SweepBlock(
                coupling.inner(rows), coupling.pull(state, rows, strip), strip_base[:, rows],
                inverse[:, steps], factor[:, steps],
            )  # fmt: skip
            error = chooser.choose(order[steps], strip, block)
            change[:, rows, strip] = error
            coupling.reach(state, rows, error)
        coupling.state[:, :, strip] = state

    deterministic_map(run, range(0, outputs, chooser.strip))
    return chooser.codes, change
