"""Codes chosen input by input, each making up for the error of the others."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.objective import Fitted, Objective, Placed
from vq_plugin.fit.sweep import own_blocks, sweep


def feedback(objective: Objective, fitted: Fitted) -> Fitted:
    """Assigns codes to one input (or ``dim`` of them) after the other, largest inputs first.

    With ``H = L·Lᵀ`` the objective is ``Σ_j ‖e_j·L_jj + Σ_i e_i·L_ij‖²``, where i runs over the
    inputs after j in the order of ``L``. Taken from the last to the first, each input sees the
    errors that its choice can make up for. That is GPTQ (Frantar et al. 2022, arXiv 2210.17323)
    without an inverse, and for sub-vectors along the inputs GPTVQ (van Baalen et al. 2024, arXiv
    2402.15319) with the metric ``L_jj·L_jjᵀ``.

    Args:
        objective: What to lower.
        fitted: Its codebooks are used and kept.

    Returns:
        New codes, and the codebooks.
    """
    dim = _step_length(objective, fitted)
    size = objective.hessian.diagonal(0, 1, 2).sum(0).reshape(-1, dim).sum(1)
    order = size.argsort(descending=True, stable=True)
    columns = _columns(order.flip(0), dim)
    permuted = objective.hessian[:, columns][:, :, columns]
    factor = torch.linalg.cholesky(permuted.double()).float()
    groups, inputs, _ = factor.shape
    # The last step first, inputs of a step as they were.
    by_step = factor.reshape(groups, len(order), dim, len(order), dim)
    matrix = by_step.flip(1, 3).reshape(groups, inputs, inputs)
    base = objective.weight[:, _columns(order, dim)]
    codes, _ = sweep(
        objective, fitted, order=order, matrix=matrix, factor=own_blocks(matrix, dim), base=base,
        pull=torch.zeros_like(base),
    )  # fmt: skip
    return Fitted(codes, fitted.codebooks)


def descend(objective: Objective, placed: Placed) -> Placed:
    """Assigns codes to one input (or ``dim`` of them) at a time, all others being as they are.

    Coordinate descent on the objective: each choice is the best one for the errors of all other
    inputs.

    Args:
        objective: What to lower.
        placed: Where to start.

    Returns:
        New codes, and the codebooks.
    """
    dim = _step_length(objective, placed.fitted)
    hessian, pull = objective.hessian, placed.pull.clone()
    factor = torch.linalg.cholesky(own_blocks(hessian, dim).double()).float()
    codes, change = sweep(
        objective, placed.fitted, order=torch.arange(factor.shape[1]), matrix=hessian,
        factor=factor, base=objective.weight - placed.error, pull=pull,
    )  # fmt: skip
    return Placed(Fitted(codes, placed.fitted.codebooks), placed.error + change, pull)


def _step_length(objective: Objective, fitted: Fitted) -> int:
    return 1 if objective.along_out else fitted.codebooks.shape[4]


def _columns(steps: Tensor, dim: int) -> Tensor:
    return (steps.unsqueeze(1) * dim + torch.arange(dim)).flatten()
