"""Weights in training that are whole numbers of a step, and pulled by the bits of these."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.library import Library

from vq_plugin.ops.native import native

# Tensors are float32 and dense; numbers are round(latent / step), from -reach to reach. There are
# native kernels only, whose sums are rounded in one order, whatever the threads.
_library = Library("vq", "FRAGMENT")  # type: ignore[no-untyped-call]
for _schema in (
    # Of every weight the center of its number; centers are (2 * reach + 1,).
    "write_multiples(Tensor(a!) weight, Tensor latent, Tensor centers, float step) -> ()",
    # How many weights have each number, and the sum of a gradient over them: float64,
    # (2 * reach + 1,).
    "count_multiples(Tensor latent, float step, int reach) -> Tensor",
    "sums_of_multiples(Tensor grad, Tensor latent, float step, int reach) -> Tensor",
    # Adds what pulls, as long as the next size of a number costs more, to a gradient, and gives
    # that of the logarithm of the step; pulls are (reach + 1,).
    "pull_multiples(Tensor(a!) grad, Tensor latent, Tensor pulls, float step) -> Tensor",
):
    _library.define(_schema)  # type: ignore[no-untyped-call]


def numbers_of(latent: Tensor, step: Tensor, reach: int) -> Tensor:
    """The nearest whole numbers of steps, from ``-reach`` to ``reach``: float32, of any shape.

    Example:
        >>> numbers_of(torch.tensor([0.8, -3.1, 9.0]), torch.tensor(0.5), reach=8).tolist()
        [2.0, -6.0, 8.0]
    """
    return (latent.detach() / step).round_().clamp_(-reach, reach)


def write_multiples(weight: Tensor, latent: Tensor, centers: Tensor, step: Tensor) -> None:
    """Writes what the numbers of a latent weight stand for.

    Args:
        weight: What is written, of any shape; autograd does not see it.
        latent: Of the same shape.
        centers: What the numbers from ``-reach`` to ``reach`` stand for, ``(2 · reach + 1,)``.
        step: A scalar.

    Example:
        >>> weight, centers = torch.empty(3), 0.5 * torch.arange(-8, 9)
        >>> write_multiples(weight, torch.tensor([0.8, -3.1, 9.0]), centers, torch.tensor(0.5))
        >>> weight.tolist()
        [1.0, -3.0, 4.0]
    """
    weight, latent = weight.detach(), latent.detach()
    if _natively(weight, latent):
        torch.ops.vq.write_multiples(weight, latent, centers, float(step))
        return
    reach = len(centers) // 2
    weight.copy_(centers[numbers_of(latent, step, reach).int() + reach])


def count_multiples(latent: Tensor, step: Tensor, reach: int) -> Tensor:
    """How many weights have each number from ``-reach`` to ``reach``: float64.

    Example:
        >>> count_multiples(torch.tensor([0.8, 1.1, -0.4]), torch.tensor(0.5), reach=2).tolist()
        [0.0, 1.0, 0.0, 0.0, 2.0]
    """
    if _natively(latent):
        counts: Tensor = torch.ops.vq.count_multiples(latent.detach(), float(step), reach)
        return counts
    numbers = numbers_of(latent, step, reach).flatten().int() + reach
    return torch.bincount(numbers, minlength=2 * reach + 1).double()


def sums_of_multiples(grad: Tensor, latent: Tensor, step: Tensor, reach: int) -> Tensor:
    """Sums of a gradient over the weights of each number from ``-reach`` to ``reach``: float32.

    Example:
        >>> grad, latent = torch.tensor([1.0, 2.0, 4.0]), torch.tensor([0.8, 1.1, -0.4])
        >>> sums_of_multiples(grad, latent, torch.tensor(0.5), reach=2).tolist()
        [0.0, 4.0, 0.0, 0.0, 3.0]
    """
    if _natively(grad, latent):
        sums: Tensor = torch.ops.vq.sums_of_multiples(grad, latent.detach(), float(step), reach)
        return sums.float()
    places = numbers_of(latent, step, reach).flatten().int() + reach
    return grad.new_zeros(2 * reach + 1).index_add_(0, places, grad.flatten())


def pull_multiples(grad: Tensor, latent: Tensor, pulls: Tensor, step: Tensor) -> Tensor:
    """Makes the gradient of multiples of a step that of what is rounded to them, and of their bits.

    The task's gradient passes straight through the rounding (Bengio et al. 2013, arXiv 1308.3432);
    the step's share in it is what rounding changes (Esser et al. 2020, arXiv 1902.08153). Bits pull
    at how many steps a value is long.

    Args:
        grad: Of the multiples; becomes the gradient of ``latent``.
        latent: What is rounded, of the same shape.
        pulls: What the next larger number costs more than one of each size, from 0 on,
            ``(reach + 1,)``; numbers are from ``-reach`` to ``reach``.
        step: A scalar.

    Returns:
        The gradient of the logarithm of the step, a scalar.

    Example:
        >>> latent, grad = torch.tensor([0.8, -3.1]), torch.zeros(2)
        >>> slope = pull_multiples(grad, latent, torch.ones(9), torch.tensor(0.5))
        >>> grad.tolist(), round(slope.item(), 3)
        ([2.0, -2.0], -7.8)
    """
    if _natively(grad, latent):
        slope: Tensor = torch.ops.vq.pull_multiples(grad, latent.detach(), pulls, float(step))
        return slope
    reach = len(pulls) - 1
    place = latent.detach() / step
    pull = pulls[place.abs().clamp_(max=reach).int()].copysign(place)
    change = numbers_of(latent, step, reach).sub_(place)
    slope = torch.dot(grad.flatten(), change.flatten()) * step
    slope -= torch.dot(pull.flatten(), place.flatten())
    grad += pull.div_(step)
    return slope


def _natively(*tensors: Tensor) -> bool:
    return native() is not None and all(
        each.is_cpu and each.dtype is torch.float32 and each.is_contiguous() for each in tensors
    )
