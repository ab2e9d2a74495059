"""Clusters whose sums follow the points that join and leave them."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch

# Points that move at a time: what they would cost fits a core's cache.
BLOCK_POINTS = 256


@dataclass
class Clusters:
    """The clusters of all books, one row each.

    ``first`` is the row of the first cluster of every book, ``(books, 1)``, ``slots`` that of every
    point's, ``(books, n)``. ``sums`` are weighted, ``mass`` sums the importance,
    ``(books · k, dim)``, or counts, ``(books · k, 1)``; ``count`` is of points, ``(books · k,)``.
    """

    first: Tensor
    slots: Tensor
    sums: Tensor
    mass: Tensor
    count: Tensor

    @classmethod
    def of(cls, batch: Batch, codes: Tensor, k: int) -> Clusters:
        """Of points and their codes, ``(books, n)``."""
        books, n, dim = batch.x.shape
        first = torch.arange(books).unsqueeze(1) * k
        sums = torch.zeros(books * k, dim, dtype=torch.float32)
        mass = sums[:, :1].clone() if batch.importance is None else sums.clone()
        count = torch.zeros(books * k, dtype=torch.int64)
        clusters = cls(first, codes.long() + first, sums, mass, count)
        everything = torch.ones(books, n, dtype=torch.bool)
        clusters._add(*_rows(batch, everything), clusters.slots.flatten(), 1)
        return clusters

    def gain(self) -> Tensor:
        """``Σ M·mean²`` per book: the error is a constant minus it."""
        square = (self._centers().double() * self.sums.double()).sum(1)
        return square.reshape(len(self.first), -1).sum(1)

    def sweep(self, batch: Batch) -> None:
        """Moves points, a block at a time, to where they add least to the error."""
        dim = batch.x.shape[2]
        # Coordinate by coordinate the costs take dim times the memory.
        step = BLOCK_POINTS if batch.importance is None else max(8, BLOCK_POINTS // dim)
        for start in range(0, batch.n, step):
            points = slice(None), slice(start, start + step)
            self._move(batch[points], self.slots[points])

    def _add(self, points: Tensor, weights: Tensor, slots: Tensor, sign: int) -> None:
        """Adds (or removes) points, ``(n, dim)``, at their centers' rows."""
        self.sums.index_add_(0, slots, points * weights, alpha=sign)
        self.mass.index_add_(0, slots, weights, alpha=sign)
        self.count.index_add_(0, slots, torch.ones_like(slots), alpha=sign)
        # What rounding leaves behind in an empty cluster is no sum of anything.
        self.sums[self.count == 0] = 0
        self.mass[self.count == 0] = 0

    def _centers(self) -> Tensor:
        """Means, 0 for clusters without points."""
        return self.sums / self.mass.clamp_min(torch.finfo(torch.float32).tiny)

    def _move(self, block: Batch, slots: Tensor) -> None:
        """Moves the points of one block; ``slots`` are a view of theirs."""
        joining, leaving = self._costs(block, slots)
        cost = joining.scatter_(2, (slots - self.first).unsqueeze(2), leaving.unsqueeze(2))
        new = cost.argmin(2) + self.first
        moved = new != slots
        points, weights = _rows(block, moved)
        self._add(points, weights, slots[moved], -1)
        self._add(points, weights, new[moved], 1)
        slots.copy_(new)

    def _costs(self, block: Batch, slots: Tensor) -> tuple[Tensor, Tensor]:
        """What joining every cluster costs, ``(books, n, k)``, and what leaving its own saves."""
        books, _, dim = block.x.shape
        centers, mass = self._centers(), self.mass
        per_book = centers.reshape(books, -1, dim)
        square_to_own = (block.x - centers[slots]).square()
        if block.importance is None:
            # As in the assignment: around the centers' mean products round less.
            middle = per_book.mean(1, keepdim=True)
            x, c = block.x - middle, per_book - middle
            square = (x * x).sum(2, keepdim=True) + (c * c).sum(2).unsqueeze(1)
            distance = torch.baddbmm(square, x, c.transpose(1, 2), alpha=-2)
            joining = distance * (mass / (mass + 1)).reshape(books, 1, -1)
            return joining, _leaving(square_to_own, mass[slots], torch.ones(1, dtype=torch.float32))
        weight = block.importance.unsqueeze(2)
        m = mass.reshape(books, 1, -1, dim)
        joining = (block.x.unsqueeze(2) - per_book.unsqueeze(1)).square_()
        joining = joining.mul_(weight * m / (m + weight)).sum(3)
        return joining, _leaving(square_to_own, mass[slots], block.importance)


def _rows(batch: Batch, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen points, ``(m, dim)``, and their importance, ``(m, dim)``, or ones, ``(m, 1)``."""
    points = batch.x[chosen]
    if batch.importance is None:
        return points, torch.ones(len(points), 1, dtype=torch.float32)
    return points, batch.importance[chosen]


def _leaving(square: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
    """``Σ_j w·M/(M−w)·(x−c)²``; a point alone with its center saves nothing and stays."""
    others = mass - weight
    factor = torch.where(others > 1e-6 * mass, weight * mass / others, 0.0)
    return (square * factor).sum(2)
