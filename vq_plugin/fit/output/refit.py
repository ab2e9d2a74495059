"""The best codebooks for given codes: weighted least squares."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.output.objective import Objective, Placed, Quantized

_ITERATIONS = 8
_TOLERANCE = 1e-3


def refit(objective: Objective, placed: Placed, *, iterations: int = _ITERATIONS,
          tolerance: float = _TOLERANCE) -> Placed:  # fmt: skip
    """Codebooks that minimize the objective while the codes stay.

    The decoded weight is linear in the codebooks, so the objective is quadratic in them. Its normal
    equations, of one unknown per number in the codebooks, are solved by conjugate gradients with a
    diagonal preconditioner, from the codebooks at hand; every iteration lowers the objective.

    Every iteration costs one product with the second moments. They end where another one is
    expected to lower the objective by less than ``tolerance`` of it, and where the gradient (in the
    norm of the preconditioner) is this part of what it was. Centers without weights, and zeros that
    stay, are kept.
    """
    quantized, error, product = placed
    metric = objective.metric
    free = torch.ones_like(quantized.codebooks)
    if objective.zeros is not None:
        free = (quantized.codebooks != 0).float()
    scale = objective.gather(lambda _: metric.diagonal.unsqueeze(2), quantized)
    scale = torch.where(scale > 0, free / scale, 0.0)

    def gather(error: Tensor, product: Tensor) -> Tensor:
        def gradient(outputs: slice) -> Tensor:
            return metric.pull(error[:, :, outputs], product[:, :, outputs])

        return objective.gather(gradient, quantized).double()

    codebooks, residual = quantized.codebooks.double(), gather(error, product)
    step = scale * residual
    direction, size = step, (residual * step).sum()
    goal, value = float(size) * tolerance**2, objective.value(placed)
    lengths: list[float] = []
    for _ in range(iterations):
        # With a step as long as the longest, the iteration would lower the value by that.
        gain = float(size) * max(lengths, default=1.0)
        if not (float(size) > goal and gain > value * tolerance):
            break
        # Everything is linear in the codebooks, the error and its product too.
        added = objective.decode(Quantized(quantized.codes, direction.float()))
        more = metric.product(added)
        along = gather(added, more)
        curvature = (direction * along).sum()
        if not bool(curvature > 0):
            break
        length = size / curvature
        value -= float(length * size)
        lengths.append(float(length))
        codebooks, residual = codebooks + length * direction, residual - length * along
        # Those that were given stay as they are; sums go where what is added was.
        error = torch.sub(error, added, alpha=float(length), out=added)
        product = torch.sub(product, more, alpha=float(length), out=more)
        step = scale * residual
        before, size = size, (residual * step).sum()
        direction = step + size / before * direction
    return Placed(Quantized(quantized.codes, codebooks.float()), error, product)
