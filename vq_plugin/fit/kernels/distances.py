"""Distances to centers, and sums over the points of each, as matrix products of torch."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch

# bincount is fastest on short sub-vectors, one column at a time; index_add_ on long ones.
_SHORT = 64
# Squared distances below this part of the squared norms are rounding noise of the products.
_NOISE = 4e-6


def nearest_center(block: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Index of the nearest center, and its weighted squared distance, each ``(books, n)``."""
    # Around the centers' mean |x|² stays small beside the differences that matter.
    middle = centers.mean(1, keepdim=True)
    x, centers = block.x - middle, centers - middle
    if block.importance is None:
        minus_square = -(centers * centers).sum(2, keepdim=True)
        scores = torch.baddbmm(minus_square, centers, x.transpose(1, 2), alpha=2)
        norm = (x * x).sum(2)
    else:
        weighted = block.importance * x
        by_center = torch.cat([2 * centers, -(centers * centers)], 2)
        by_point = torch.cat([weighted, block.importance], 2)
        scores = torch.bmm(by_center, by_point.transpose(1, 2))
        norm = (weighted * x).sum(2)
    best, index = _best(scores)
    return index, (norm - best).clamp_min_(0)


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score over the centers, ``(books, k, n)``, and its index, each ``(books, n)``.

    Two maxima over a middle dimension and a comparison run vectorized, five times faster than
    torch's ``max`` with indices.
    """
    best = scores.amax(1, keepdim=True)
    index = torch.arange(scores.shape[1], dtype=scores.dtype).view(1, -1, 1)
    hit = torch.ge(scores, best, out=torch.empty_like(scores))
    return best.squeeze(1), hit.mul_(index).amax(1)


def squared_distances(x: Tensor, norm: Tensor, centers: Tensor) -> Tensor:
    """Squared distances less the noise, ``(books, centers, n)``: exactly 0 for equal points."""
    square = (centers * centers).sum(2, keepdim=True)
    beyond = (square + norm.unsqueeze(1)).mul_(1 - _NOISE)
    return torch.baddbmm(beyond, centers, x.transpose(1, 2), alpha=-2).clamp_min_(0)


def sums_by_slot(values: Tensor, slots: Tensor, count: int) -> Tensor:
    """Sums of ``values``, ``(books, n, dim)``, by slot: ``(count, dim)``."""
    points = values.flatten(0, 1)
    if points.shape[1] > _SHORT:
        zeros = torch.zeros(count, points.shape[1], dtype=torch.float32)
        return zeros.index_add_(0, slots, points)
    columns = [torch.bincount(slots, column.double(), count).float() for column in points.T]
    return torch.stack(columns, 1)
