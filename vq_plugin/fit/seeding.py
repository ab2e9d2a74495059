"""First centers for k-means on sub-vectors."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from vq_plugin.fit.assignment import Batch, native_kernels
from vq_plugin.ops import fit as native

# Squared distances below this part of the squared norms are rounding noise of the products.
_NOISE = 4e-6
# Distances concentrate as dimensions grow: one draw is then as good as the best of several.
_HIGH_DIM = 128


def plus_plus(batch: Batch, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ for a batch of books (Arthur & Vassilvitskii 2007, section 2.2).

    Every center is the best of ``2 + ln k`` draws (of one in high dimensions) with probability
    proportional to the (importance-weighted) squared distance to the centers chosen so far.

    Args:
        batch: The points; the mean of the importance over ``dim`` weights a point.
        k: Centers wanted.
        generator: Source of the draws.

    Returns:
        Centers, float32, ``(books, k', dim)``; ``k' < k`` where no book has ``k`` distinct points.
        In books that run out earlier the last centers repeat.
    """
    books, n, dim = batch.x.shape
    mass = (
        torch.ones(books, n, dtype=torch.float32)
        if batch.importance is None
        else batch.importance.mean(2)
    )
    trials = 1 if dim > _HIGH_DIM else 2 + int(math.log(k))
    first = torch.rand(books, 1, generator=generator, dtype=torch.float64)
    draws = torch.rand(k - 1, books, trials, generator=generator, dtype=torch.float64)
    if native_kernels(batch, k):
        seeds, found = native.seed_centers(batch.x, mass, first, draws)
        return seeds[:, : int(found.max())]
    middle = batch.x.mean(1, keepdim=True)
    x = batch.x - middle
    norm = torch.linalg.vector_norm(x, dim=2).square()

    centers = _take(x, _draw(mass, first))
    nearest = _distances(x, norm, centers).squeeze(1)
    for draw in draws:
        potential = nearest * mass
        if not bool((potential > 0).any()):
            break
        candidates = _take(x, _draw(potential, draw))
        distance = torch.minimum(_distances(x, norm, candidates), nearest.unsqueeze(1))
        best = torch.bmm(distance, mass.unsqueeze(2)).argmin(1, keepdim=True)
        nearest = distance.gather(1, best.expand(-1, 1, n)).squeeze(1)
        centers = torch.cat([centers, candidates.gather(1, best.expand(-1, 1, dim))], 1)
    return centers + middle


def _draw(weight: Tensor, draws: Tensor) -> Tensor:
    """Indices that numbers in [0, 1), ``(books, count)``, draw in proportion to ``weight``."""
    total = weight.double().cumsum(1)
    return torch.searchsorted(total, draws * total[:, -1:], right=True).clamp_(
        max=weight.shape[1] - 1
    )


def _take(x: Tensor, index: Tensor) -> Tensor:
    return x.gather(1, index.unsqueeze(2).expand(-1, -1, x.shape[2]))


def _distances(x: Tensor, norm: Tensor, centers: Tensor) -> Tensor:
    """Squared distances less the noise, ``(books, centers, n)``: exactly 0 for equal points."""
    square = (centers * centers).sum(2, keepdim=True)
    beyond = (square + norm.unsqueeze(1)).mul_(1 - _NOISE)
    return torch.baddbmm(beyond, centers, x.transpose(1, 2), alpha=-2).clamp_min_(0)
