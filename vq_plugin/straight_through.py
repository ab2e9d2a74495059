"""The straight-through gradient of what is rounded or quantized (Bengio et al. 2013)."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor


class _Replace(torch.autograd.Function):
    @staticmethod
    def forward(ctx: object, values: Tensor, rounded: Tensor) -> Tensor:
        return rounded

    @staticmethod
    def backward(ctx: object, grad: Tensor) -> tuple[Tensor, None]:
        return grad, None


_replace: Callable[[Tensor, Tensor], Tensor] = _Replace.apply


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` in the dtype of ``values``, which get its gradient unchanged."""
    rounded = rounded.to(values.dtype)
    if torch.is_grad_enabled() and values.requires_grad:
        return _replace(values, rounded)
    return rounded
