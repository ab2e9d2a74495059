"""Codes of sums of centers: the nearest one, or a beam search over stages."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch, chosen
from vq_plugin.fit.kernels.distances import nearest_center

# Partial sums that are kept from stage to stage.
_BEAM = 4


def nearest_sum(batch: Batch, centers: Tensor, before: Tensor) -> Tensor:
    """Codes, int64, ``(stages, books, n)``, whose centers come near the points in sum.

    With one stage the nearest center. With several, a beam search (Babenko & Lempitsky 2014,
    "Additive quantization", section 3): of all continuations of the best partial sums the best are
    kept, and the codes from ``before``, of the same shape, where they are better still. Centers are
    ``(stages, books, k, dim)``.
    """
    if len(centers) == 1 and batch.n == 1:
        # Matrix products take many points per book.
        square = (batch.x - centers[0]).square() * _weight(batch)
        return square.sum(2).argmin(1).reshape(1, -1, 1)
    if len(centers) == 1:
        return nearest_center(batch, centers[0])[0].long().unsqueeze(0)
    codes = _beam_search(batch, centers)
    better = _cost(batch, centers, codes) < _cost(batch, centers, before)
    return torch.where(better, codes, before)


def _beam_search(batch: Batch, centers: Tensor) -> Tensor:
    stages, books, k, dim = centers.shape
    n, weight = batch.n, _weight(batch)
    residual = batch.x.unsqueeze(2)
    codes = torch.zeros(books, n, 1, 0, dtype=torch.int64)
    for stage, table in enumerate(centers):
        width = residual.shape[2]
        weighted = (residual * weight.unsqueeze(2)).reshape(books, -1, dim)
        product = (weighted @ table.mT).reshape(books, n, width, k)
        square = weight.expand(books, n, dim) @ table.square().mT
        size = (residual * residual * weight.unsqueeze(2)).sum(3, keepdim=True)
        cost = size - 2 * product + square.unsqueeze(2)
        keep = min(1 if stage + 1 == stages else _BEAM, width * k)
        best = cost.reshape(books, n, -1).topk(keep, dim=2, largest=False).indices
        parent, code = (best // k).unsqueeze(3), best % k
        codes = torch.cat([codes.gather(2, parent.expand(-1, -1, -1, stage)), code[..., None]], 3)
        added = chosen(table, code.reshape(books, -1)).reshape(books, n, keep, dim)
        residual = residual.gather(2, parent.expand(-1, -1, -1, dim)) - added
    return codes[:, :, 0].permute(2, 0, 1)


def _cost(batch: Batch, centers: Tensor, codes: Tensor) -> Tensor:
    residual = batch.x
    for table, stage_codes in zip(centers, codes, strict=True):
        residual = residual - chosen(table, stage_codes)
    return (residual * residual * _weight(batch)).sum(2)


def _weight(batch: Batch) -> Tensor:
    return (
        torch.ones(1, 1, 1, dtype=torch.float32) if batch.importance is None else batch.importance
    )
