"""First centers for k-means on sub-vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels

# Distances concentrate as dimensions grow: one draw is then as good as the best of several.
_HIGH_DIM = 128


def plus_plus(batch: Batch, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ for a batch of books (Arthur & Vassilvitskii 2007, section 2.2).

    Every center is the best of ``2 + ln k`` draws (of one in high dimensions) with probability
    proportional to the (importance-weighted) squared distance to the centers chosen so far.

    The mean of the importance over ``dim`` weights a point.

    Returns:
        Centers, float32, ``(books, k', dim)``; ``k' < k`` where no book has ``k`` distinct points.
        In books that run out earlier the last centers repeat.
    """
    books, n, dim = batch.x.shape
    mass = torch.ones(books, n, dtype=torch.float32)
    if batch.importance is not None:
        mass = batch.importance.mean(2)
    trials = 1 if dim > _HIGH_DIM else 2 + int(math.log(k))
    first = torch.rand(books, 1, generator=generator, dtype=torch.float64)
    draws = torch.rand(k - 1, books, trials, generator=generator, dtype=torch.float64)
    return best_kernels().seeds(batch, mass, first, draws)
