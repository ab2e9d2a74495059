"""Hartigan's exchange: the step past Lloyd where centers have few points each."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.assignment import BLOCK, Batch, assign, native_kernels, update
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.ops import fit as native

# A point is 1/n of its own mean, which holds it back in Lloyd's assignment; with more points
# per center than this the effect is no longer worth the sweeps.
_FEW_POINTS = 64
_SWEEPS = 4
_BLOCK_POINTS = 256


def improve(batch: Batch, codes: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Better codes and centers than Lloyd's.

    Moves a point from code a to b where that lowers the total error *with both means moved along*:
    ``n_b/(n_b+1)·|x−c_b|² < n_a/(n_a−1)·|x−c_a|²`` (Hartigan 1975; Telgarsky & Vattani 2010,
    eq. 2). With importance w and masses M, coordinate by coordinate:
    ``Σ_j w·M_b/(M_b+w)·(x−c_b)² < Σ_j w·M_a/(M_a−w)·(x−c_a)²``. Points move a block at a time;
    a sweep that does not lower a book's error ends it. With many points per center it is one
    step of Lloyd instead.

    Args:
        batch: The points.
        codes: Integers, ``(books, n)``.
        centers: Float32, ``(books, k, dim)``; used by the step of Lloyd.

    Returns:
        Codes and centers of the same shapes.
    """
    k = centers.shape[1]
    if batch.n > _FEW_POINTS * k:
        codes = assign(batch, centers)
    else:
        step = max(1, BLOCK // (k * _BLOCK_POINTS))
        groups = [slice(start, start + step) for start in range(0, len(codes), step)]
        codes = torch.cat(deterministic_map(lambda g: _exchange(batch[g], codes[g], k), groups))
    means, mass = update(batch, codes, k)
    return codes, torch.where(mass > 0, means, centers)


@dataclass
class _Clusters:
    """Sums of every center, one row a center of a book, updated as points move.

    Attributes:
        sums: Weighted sums of the points, ``(books · k, dim)``.
        mass: Sums of the importance, ``(books · k, dim)``, or counts, ``(books · k, 1)``.
        count: Number of points, ``(books · k,)``.
    """

    sums: Tensor
    mass: Tensor
    count: Tensor

    def add(self, points: Tensor, weights: Tensor, slots: Tensor, sign: int) -> None:
        """Adds (or removes) points, ``(n, dim)``, at their centers' rows."""
        self.sums.index_add_(0, slots, points * weights, alpha=sign)
        self.mass.index_add_(0, slots, weights, alpha=sign)
        self.count.index_add_(0, slots, torch.ones_like(slots), alpha=sign)
        # What rounding leaves behind in an empty cluster is no sum of anything.
        self.sums[self.count == 0] = 0
        self.mass[self.count == 0] = 0

    def centers(self) -> Tensor:
        """Means, 0 for centers without points."""
        return self.sums / self.mass.clamp_min(torch.finfo(torch.float32).tiny)

    def gain(self, books: int) -> Tensor:
        """``Σ M·mean²`` per book: the error is a constant minus it."""
        square = (self.centers().double() * self.sums.double()).sum(1)
        return square.reshape(books, -1).sum(1)


def _exchange(batch: Batch, codes: Tensor, k: int) -> Tensor:
    if native_kernels(batch, k):
        some = batch.contiguous()
        better = native.exchange_codes(
            some.x, some.importance, codes.to(torch.uint8), k, sweeps=_SWEEPS
        )
        return better.to(codes.dtype)
    books, n, dim = batch.x.shape
    first = torch.arange(books).unsqueeze(1) * k
    own = codes.long() + first
    width = 1 if batch.importance is None else dim
    clusters = _Clusters(
        torch.zeros(books * k, dim, dtype=torch.float32),
        torch.zeros(books * k, width, dtype=torch.float32),
        torch.zeros(books * k, dtype=torch.int64),
    )
    clusters.add(*_rows(batch, torch.ones(books, n, dtype=torch.bool)), own.flatten(), 1)
    # Coordinate by coordinate the costs take dim times the memory.
    points = _BLOCK_POINTS if batch.importance is None else max(8, _BLOCK_POINTS // dim)
    best, best_gain = own.clone(), clusters.gain(books)
    for _ in range(_SWEEPS):
        for start in range(0, n, points):
            block = slice(None), slice(start, start + points)
            _move(batch[block], own[block], first, clusters)
        gain = clusters.gain(books)
        better = gain > best_gain
        if not bool(better.any()):
            break
        best = torch.where(better.unsqueeze(1), own, best)
        best_gain = torch.maximum(gain, best_gain)
    return (best - first).to(codes.dtype)


def _rows(batch: Batch, chosen: Tensor) -> tuple[Tensor, Tensor]:
    """Chosen points, ``(m, dim)``, and their importance, ``(m, dim)``, or ones, ``(m, 1)``."""
    points = batch.x[chosen]
    if batch.importance is None:
        return points, torch.ones(len(points), 1, dtype=torch.float32)
    return points, batch.importance[chosen]


def _move(block: Batch, own: Tensor, first: Tensor, clusters: _Clusters) -> None:
    """Moves the points of one block; updates ``own`` and ``clusters`` in place."""
    join, leave = _costs(block, own, clusters)
    cost = join.scatter_(2, (own - first).unsqueeze(2), leave.unsqueeze(2))
    new = cost.argmin(2) + first
    moved = new != own
    points, weights = _rows(block, moved)
    clusters.add(points, weights, own[moved], -1)
    clusters.add(points, weights, new[moved], 1)
    own.copy_(new)


def _costs(block: Batch, own: Tensor, clusters: _Clusters) -> tuple[Tensor, Tensor]:
    """What joining every center would cost, ``(books, n, k)``, and leaving one's own would save."""
    books, _, dim = block.x.shape
    centers, mass = clusters.centers(), clusters.mass
    per_book = centers.reshape(books, -1, dim)
    mine = (block.x - centers[own]).square()
    if block.importance is None:
        # As in the assignment: around the centers' mean products round less.
        middle = per_book.mean(1, keepdim=True)
        x, c = block.x - middle, per_book - middle
        square = (x * x).sum(2, keepdim=True) + (c * c).sum(2).unsqueeze(1)
        distance = torch.baddbmm(square, x, c.transpose(1, 2), alpha=-2)
        join = distance * (mass / (mass + 1)).reshape(books, 1, -1)
        return join, _leaving(mine, mass[own], torch.ones(1, dtype=torch.float32))
    weight = block.importance.unsqueeze(2)
    m = mass.reshape(books, 1, -1, dim)
    join = (block.x.unsqueeze(2) - per_book.unsqueeze(1)).square_()
    join = join.mul_(weight * m / (m + weight)).sum(3)
    return join, _leaving(mine, mass[own], block.importance)


def _leaving(square: Tensor, mass: Tensor, weight: Tensor) -> Tensor:
    """``Σ_j w·M/(M−w)·(x−c)²``; a point alone with its center saves nothing and stays."""
    left = mass - weight
    factor = torch.where(left > 1e-6 * mass, weight * mass / left, 0.0)
    return (square * factor).sum(2)
