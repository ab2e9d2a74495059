"""Hartigan's exchange: the step past Lloyd where centers have few points each."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.assignment import BLOCK, Batch, assign, update
from vq_plugin.fit.parallel import deterministic_map

# A point is 1/n of its own mean, which holds it back in Lloyd's assignment; with more points
# per center than this the effect is no longer worth the sweeps.
_FEW_POINTS = 32
_SWEEPS = 4
_BLOCK_POINTS = 256


def improve(batch: Batch, codes: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Better codes and centers than Lloyd's.

    Moves a point from code a to b where that lowers the total error *with both means moved along*:
    ``n_b/(n_b+1)·|x−c_b|² < n_a/(n_a−1)·|x−c_a|²`` (Hartigan 1975; Telgarsky & Vattani 2010,
    eq. 2). Points move a block at a time; a sweep that does not lower a book's error ends it.
    With many points per center, or with importance, it is one step of Lloyd instead.

    Args:
        batch: The points.
        codes: Integers, ``(books, n)``.
        centers: Float32, ``(books, k, dim)``; used by the step of Lloyd.

    Returns:
        Codes and centers of the same shapes.
    """
    k = centers.shape[1]
    if batch.importance is not None or batch.n > _FEW_POINTS * k:
        codes = assign(batch, centers)
    else:
        step = max(1, BLOCK // (k * _BLOCK_POINTS))
        pairs = zip(torch.split(batch.x, step), torch.split(codes, step), strict=True)
        codes = torch.cat(deterministic_map(lambda pair: _exchange(*pair, k), pairs))
    means, mass = update(batch, codes, k)
    return codes, torch.where(mass > 0, means, centers)


def _exchange(x: Tensor, codes: Tensor, k: int) -> Tensor:
    books, n, dim = x.shape
    first = torch.arange(books).unsqueeze(1) * k
    own = codes.long() + first
    sums = torch.zeros(books * k, dim, dtype=torch.float32).index_add_(
        0, own.flatten(), x.reshape(-1, dim)
    )
    count = torch.bincount(own.flatten(), minlength=books * k).float()
    best, best_gain = own.clone(), _gain(sums, count, books)
    for _ in range(_SWEEPS):
        for start in range(0, n, _BLOCK_POINTS):
            _move(
                x[:, start : start + _BLOCK_POINTS],
                own[:, start : start + _BLOCK_POINTS],
                sums,
                count,
                first,
            )
        gain = _gain(sums, count, books)
        better = gain > best_gain
        if not bool(better.any()):
            break
        best = torch.where(better.unsqueeze(1), own, best)
        best_gain = torch.maximum(gain, best_gain)
    return (best - first).to(codes.dtype)


def _gain(sums: Tensor, count: Tensor, books: int) -> Tensor:
    """``Σ n·|mean|²`` per book: the error is a constant minus it."""
    square = sums.double().square().sum(1) / count.clamp_min(1)
    return square.reshape(books, -1).sum(1)


def _move(x: Tensor, own: Tensor, sums: Tensor, count: Tensor, first: Tensor) -> None:
    """Moves the points of one block; updates ``own``, ``sums`` and ``count`` in place."""
    books, _, dim = x.shape
    rows = x
    centers = (sums / count.clamp_min(1).unsqueeze(1)).reshape(books, -1, dim)
    # As in the assignment: around the centers' mean products round less.
    middle = centers.mean(1, keepdim=True)
    x, centers = x - middle, centers - middle
    square = (x * x).sum(2, keepdim=True) + (centers * centers).sum(2).unsqueeze(1)
    distance = torch.baddbmm(square, x, centers.transpose(1, 2), alpha=-2)
    cost = distance * (count / (count + 1)).reshape(books, 1, -1)
    n_own = count[own]
    # A point alone with its center costs nothing and stays.
    stay = torch.where(n_own > 1, n_own / (n_own - 1).clamp_min(1), 0.0)
    local = (own - first).unsqueeze(2)
    cost.scatter_(2, local, distance.gather(2, local) * stay.unsqueeze(2))
    new = cost.argmin(2) + first
    moved = new != own
    source, target = own[moved], new[moved]
    ones = torch.ones(len(source), dtype=torch.float32)
    sums.index_add_(0, source, rows[moved], alpha=-1).index_add_(0, target, rows[moved])
    count.index_add_(0, source, ones, alpha=-1).index_add_(0, target, ones)
    own.copy_(new)
