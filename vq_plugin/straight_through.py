"""The straight-through gradient of what is rounded or quantized (Bengio et al. 2013)."""

from __future__ import annotations

from torch import Tensor


def straight_through(values: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` in the dtype of ``values``, which get its derivatives of every kind unchanged.

    Example:
        >>> import torch
        >>> x = torch.tensor([0.3, 0.9], requires_grad=True)
        >>> straight_through(x, x.detach().round()).sum().backward()
        >>> x.grad
        tensor([1., 1.])
    """
    return rounded.to(values.dtype) + (values - values.detach())
