"""The best codebooks for given codes: weighted least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.objective import Fitted, Objective

_ITERATIONS = 8
_TOLERANCE = 1e-3


def refit(objective: Objective, fitted: Fitted, *, iterations: int = _ITERATIONS,
          tolerance: float = _TOLERANCE) -> Fitted:  # fmt: skip
    """Codebooks that minimize the objective while the codes stay.

    The decoded weight is linear in the codebooks, so the objective is quadratic in them. Its normal
    equations, of one unknown per number in the codebooks, are solved by conjugate gradients with a
    diagonal preconditioner, from the codebooks at hand; every iteration lowers the objective.

    Args:
        objective: What to lower.
        fitted: Codes, and where to start.
        iterations: Most iterations; each costs one product with the second moments.
        tolerance: Stops where the gradient (in the norm of the preconditioner) is that part of
            what it was.

    Returns:
        The codes, and new codebooks. Centers without weights, and zeros that stay, are kept.
    """
    free = torch.ones_like(fitted.codebooks)
    if objective.zeros is not None:
        free = (fitted.codebooks != 0).float()
    # Inputs first, all groups' outputs last: as objective.weight.
    mass = objective.mass.reshape(len(objective.weight), 1, -1)
    diagonal = objective.hessian.diagonal(0, 1, 2).unsqueeze(2)
    scale = objective.gather(diagonal * mass, fitted)
    scale = torch.where(scale > 0, free / scale, 0.0)

    def gradient(error: Tensor) -> Tensor:
        return objective.gather(objective.pull(error) * mass, fitted)

    found = fitted.codebooks.double()
    left = gradient(objective.weight - objective.decode(fitted)).double()
    step = scale * left
    direction, size = step, (left * step).sum()
    goal = size * tolerance**2
    for _ in range(iterations):
        if not bool(size > goal):
            break
        along = gradient(objective.decode(Fitted(fitted.codes, direction.float()))).double()
        curvature = (direction * along).sum()
        if not bool(curvature > 0):
            break
        found = found + size / curvature * direction
        left = left - size / curvature * along
        step = scale * left
        before, size = size, (left * step).sum()
        direction = step + size / before * direction
    return Fitted(fitted.codes, found.float())
