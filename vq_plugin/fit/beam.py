"""Codes of sums of centers: the nearest one, or a beam search over stages."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.assignment import Batch, nearest

# Partial sums that are kept from stage to stage.
_BEAM = 4


def nearest_sum(batch: Batch, centers: Tensor, before: Tensor) -> Tensor:
    """Codes whose centers, one from each stage, come near the points in sum.

    With one stage the nearest center. With several, a beam search (Babenko & Lempitsky 2014,
    "Additive quantization", section 3): of all continuations of the best partial sums the best are
    kept, and the codes from before where they are better still.

    Args:
        batch: The points.
        centers: Float32, ``(stages, books, k, dim)``.
        before: Codes, int64, ``(stages, books, n)``.

    Returns:
        Codes, int64, ``(stages, books, n)``.
    """
    if len(centers) == 1 and batch.n == 1:
        # The kernels take many points per book.
        square = (batch.x - centers[0]).square() * _weight(batch)
        return square.sum(2).argmin(1).reshape(1, -1, 1)
    if len(centers) == 1:
        return nearest(batch, centers[0])[1].long().unsqueeze(0)
    found = _beam_search(batch, centers)
    better = _cost(batch, centers, found) < _cost(batch, centers, before)
    return torch.where(better, found, before)


def _beam_search(batch: Batch, centers: Tensor) -> Tensor:
    stages, books, k, dim = centers.shape
    n, weight = batch.n, _weight(batch)
    left = batch.x.unsqueeze(2)
    chosen = torch.zeros(books, n, 1, 0, dtype=torch.int64)
    for stage, table in enumerate(centers):
        width = left.shape[2]
        weighted = (left * weight.unsqueeze(2)).reshape(books, -1, dim)
        product = (weighted @ table.mT).reshape(books, n, width, k)
        square = weight.expand(books, n, dim) @ table.square().mT
        size = (left * left * weight.unsqueeze(2)).sum(3, keepdim=True)
        cost = size - 2 * product + square.unsqueeze(2)
        keep = min(1 if stage + 1 == stages else _BEAM, width * k)
        best = cost.reshape(books, n, -1).topk(keep, dim=2, largest=False).indices
        parent, code = (best // k).unsqueeze(3), best % k
        chosen = torch.cat([chosen.gather(2, parent.expand(-1, -1, -1, stage)), code[..., None]], 3)
        added = _chosen(table, code.reshape(books, -1)).reshape(books, n, keep, dim)
        left = left.gather(2, parent.expand(-1, -1, -1, dim)) - added
    return chosen[:, :, 0].permute(2, 0, 1)


def _cost(batch: Batch, centers: Tensor, codes: Tensor) -> Tensor:
    left = batch.x
    for table, own in zip(centers, codes, strict=True):
        left = left - _chosen(table, own)
    return (left * left * _weight(batch)).sum(2)


def _chosen(table: Tensor, codes: Tensor) -> Tensor:
    return table.gather(1, codes.unsqueeze(2).expand(-1, -1, table.shape[2]))


def _weight(batch: Batch) -> Tensor:
    return (
        torch.ones(1, 1, 1, dtype=torch.float32) if batch.importance is None else batch.importance
    )
