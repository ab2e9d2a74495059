"""Residual quantization: a sub-vector as a sum of centers, one from each stage."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch, chosen
from vq_plugin.fit.exchange import improve
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.vector import fit_vector
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import CodebookDtype

_REFIT_ROUNDS = 2
_BLOCK_WEIGHTS = 1 << 22


def fit_residual(
    batch: Batch, k: int, stages: int, *, seed: int, codebook_dtype: CodebookDtype
) -> tuple[list[Tensor], list[Tensor]]:
    """Codebooks whose sum minimizes the (weighted) squared error of sub-vectors.

    Stage by stage on what is left (Chen et al. 2010; Gong et al. 2014, eq. 7), then jointly: every
    stage in turn is re-assigned and re-averaged against what the *other* stages leave, which never
    raises the error. A last pass assigns codes to the rounded centers. Stage t takes ``seed + t``,
    and becomes centers, ``(books, k', dim)``, and codes, ``(books, n)``.
    """
    centers, codes = [], []
    residual = batch.x.clone()
    for stage in range(stages):
        table, nearest = fit_vector(Batch(residual, batch.importance), k, seed + stage)
        centers.append(table)
        codes.append(nearest)
        _add(residual, table, nearest, sign=-1)
    for _ in range(_REFIT_ROUNDS if stages > 1 else 0):
        moved = False
        for stage in range(stages):
            _add(residual, centers[stage], codes[stage], sign=1)
            before = codes[stage]
            codes[stage], centers[stage] = improve(
                Batch(residual, batch.importance), before, centers[stage]
            )
            moved = moved or not torch.equal(codes[stage], before)
            _add(residual, centers[stage], codes[stage], sign=-1)
        if not moved:
            break
    return _round(batch, residual, centers, codes, codebook_dtype)


def _round(
    batch: Batch,
    residual: Tensor,
    centers: list[Tensor],
    codes: list[Tensor],
    codebook_dtype: CodebookDtype,
) -> tuple[list[Tensor], list[Tensor]]:
    rounded = [round_centers(stage, codebook_dtype) for stage in centers]
    for stage, exact in enumerate(centers):
        _add(residual, exact - rounded[stage].float(), codes[stage], sign=1)
    for stage, stage_centers in enumerate(rounded):
        wide = stage_centers.float()
        _add(residual, wide, codes[stage], sign=1)
        codes[stage] = best_kernels().assign(Batch(residual, batch.importance), wide)
        _add(residual, wide, codes[stage], sign=-1)
    return rounded, codes


def _add(residual: Tensor, centers: Tensor, codes: Tensor, *, sign: int) -> None:
    """``residual += sign · centers[codes]``, block by block: decoded as large as a weight."""
    books, n, dim = residual.shape
    step = max(1, _BLOCK_WEIGHTS // (books * dim))
    for start in range(0, n, step):
        block = slice(start, start + step)
        residual[:, block].add_(chosen(centers, codes[:, block]), alpha=sign)
