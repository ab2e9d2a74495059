"""What counts as harm of a change of a model's outputs."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import TypeAlias

import torch
from torch import Tensor

#: A random number whose mean square is the harm of a small change of an output.
Projected: TypeAlias = Callable[[Tensor, torch.Generator], Tensor]


def classes(y: Tensor) -> int | None:
    """The dimension of an output that is of classes; ``None`` if there are no two of them.

    The last of ``(n, classes)`` and of sequences, ``(n, steps, classes)`` or steps first; of images
    and more, ``(n, classes, height, width)``, the second, as torch's losses have it. Embeddings
    cannot be told from scores, nor need they be: where values are alike, as those of unit length
    are, the divergence of their softmax is the squared change up to a factor.

    Example:
        >>> [classes(torch.zeros(s)) for s in ((9, 4), (9, 7, 4), (9, 4, 8, 8), (9, 1), (9,))]
        [1, 2, 1, None, None]
    """
    if y.dim() < 2:
        return None
    dimension = 2 if y.dim() == 3 else 1
    return dimension if y.shape[dimension] > 1 else None


def decisions_or_values(y: Tensor, generator: torch.Generator) -> Tensor:
    """A number of the change of an output: of decisions where it has :func:`classes`, or values."""
    dimension = classes(y)
    if dimension is None:
        return values(y, generator)
    # A root of the curvature of the divergence: of diag(p) - p pᵀ.
    root = y.detach().softmax(dimension).sqrt()
    noise = _noise(y, generator)
    noise = root * (noise - root * (root * noise).sum(dimension, keepdim=True))
    decisions = y.numel() // y.shape[dimension]
    return (y * noise).sum() / math.sqrt(2 * decisions)


def values(y: Tensor, generator: torch.Generator) -> Tensor:
    """A number whose mean square is the squared change of an output over its variance."""
    value = y.detach()
    # A batch of one sample has no variance.
    size = float((value - value.mean(0)).square().mean()) or float(value.square().mean())
    if size == 0:
        return (y * 0.0).sum()
    return (y * _noise(y, generator)).sum() / math.sqrt(size * y.numel())


def harm_of_change(y: Tensor, change: float) -> float:
    """The harm, as :func:`decisions_or_values` has it, of a change of an output in any direction.

    ``change`` is its square over the variance of the output, which is what :func:`values` counts.

    Example:
        >>> harm_of_change(torch.randn(64, 1), 0.01)
        0.01
        >>> harm_of_change(1e-3 * torch.randn(64, 10), 0.01) < 1e-8
        True
    """
    dimension = classes(y)
    if dimension is None:
        return change
    size = float((y - y.mean(0)).square().mean())
    # The mean of the curvature of the divergence, diag(p) - p pᵀ, over all directions.
    p = y.softmax(dimension)
    curvature = float((p - p.square()).sum(dimension).mean())
    return change * size * curvature / 2


def _noise(y: Tensor, generator: torch.Generator) -> Tensor:
    noise = torch.randn(y.shape, generator=generator, dtype=torch.float64, device="cpu")
    return noise.to(y.device)
