"""Gradients of what is rounded to whole numbers of steps, and pays for the bits of these."""

from __future__ import annotations

import torch
from torch import Tensor


def through_rounding(
    grad: Tensor, place: Tensor, pull: Tensor, step: Tensor, reach: int
) -> tuple[Tensor, Tensor]:
    """Gradients of values, and of the logarithm of their step, by the task's and their bits.

    The task's gradient passes straight through the rounding (Bengio et al. 2013, arXiv 1308.3432);
    the step's share in it is what rounding changes (Esser et al. 2020, arXiv 1902.08153). Bits pull
    at how many steps a value is long.

    Args:
        grad: Of the rounded values.
        place: The values in steps, of the same shape.
        pull: What the next larger number costs more than this, of the same shape.
        step: A scalar.
        reach: Numbers are from minus this to this.

    Example:
        >>> value, step = torch.tensor([0.8, -3.1]), torch.tensor(0.5)
        >>> grads = through_rounding(torch.zeros(2), value / step, torch.ones(2), step, reach=127)
        >>> grads[0].tolist(), round(grads[1].item(), 3)
        ([2.0, -2.0], -7.8)
    """
    pull = pull.copysign(place)
    change = place.round().clamp_(-reach, reach).sub_(place)
    slope = torch.dot(grad.flatten(), change.flatten()) * step
    slope -= torch.dot(pull.flatten(), place.flatten())
    return grad.add(pull.div_(step)), slope
