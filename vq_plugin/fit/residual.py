"""Residual quantization: a sub-vector as a sum of centers, one from each stage."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.exchange import improve
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import CodebookDtype

_REFIT_ROUNDS = 2
_BLOCK_WEIGHTS = 1 << 22

FitVector = Callable[[Batch, int, int], tuple[Tensor, Tensor]]


def fit_residual(
    batch: Batch,
    k: int,
    stages: int,
    *,
    seed: int,
    fit: FitVector,
    codebook_dtype: CodebookDtype,
) -> tuple[list[Tensor], list[Tensor]]:
    """Codebooks whose sum minimizes the (weighted) squared error of sub-vectors.

    Stage by stage on what is left (Chen et al. 2010; Gong et al. 2014, eq. 7), then jointly:
    every stage in turn is re-assigned and re-averaged against what the *other* stages leave,
    which never raises the error. A last pass assigns codes to the rounded centers.

    Args:
        batch: The points.
        k: Centers wanted per book and stage.
        stages: Number of stages.
        seed: Seed of the first stage; stage t takes ``seed + t``.
        fit: K-means for one stage, ``(batch, k, seed) -> (centers, codes)``.
        codebook_dtype: What centers are rounded to.

    Returns:
        For every stage rounded centers, ``(books, k', dim)``, and codes,
        ``(books, n)``.
    """
    centers, codes = _fit_stages(batch, k, stages, seed, fit)
    residual = batch.x.clone()
    for stage in range(stages):
        _add(residual, centers[stage], codes[stage], sign=-1)
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


def _fit_stages(
    batch: Batch, k: int, stages: int, seed: int, fit: FitVector
) -> tuple[list[Tensor], list[Tensor]]:
    centers, codes = [], []
    residual = batch.x
    for stage in range(stages):
        stage_centers, stage_codes = fit(Batch(residual, batch.importance), k, seed + stage)
        centers.append(stage_centers)
        codes.append(stage_codes)
        if stage + 1 < stages:
            residual = residual.clone() if stage == 0 else residual
            _add(residual, stage_centers, stage_codes, sign=-1)
    return centers, codes


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
        index = codes[:, start : start + step].long().unsqueeze(2).expand(-1, -1, dim)
        residual[:, start : start + step].add_(centers.gather(1, index), alpha=sign)
