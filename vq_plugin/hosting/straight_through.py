"""The gradient of a quantized weight goes to the float weight behind it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor


class _StraightThrough(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, weight: Tensor, decoded: Tensor, keep_zeros: bool) -> Tensor:
        ctx.zeros = weight == 0 if keep_zeros else None
        return decoded

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None, None]:
        return grad if ctx.zeros is None else grad.masked_fill(ctx.zeros, 0), None, None


_apply: Callable[[Tensor, Tensor, bool], Tensor] = _StraightThrough.apply


def straight_through(weight: Tensor, decoded: Tensor, *, keep_zeros: bool = False) -> Tensor:
    """``decoded``, whose gradient ``weight`` gets unchanged (Bengio et al. 2013, arXiv 1308.3432).

    Args:
        weight: The float weight that trains.
        decoded: What stands for it, of the same shape.
        keep_zeros: Whether zeros of ``weight`` get no gradient, so that they stay.

    Example:
        >>> weight = torch.tensor([0.0, 0.6], requires_grad=True)
        >>> straight_through(weight, weight.detach().round(), keep_zeros=True).sum().backward()
        >>> weight.grad
        tensor([0., 1.])
    """
    return _apply(weight, decoded, keep_zeros)
