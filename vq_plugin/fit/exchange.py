"""Hartigan's exchange: the step past Lloyd where centers have few points each."""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels

# A point is 1/n of its own mean, which holds it back in Lloyd's assignment; with more points
# per center than this the effect is no longer worth the sweeps.
_FEW_POINTS = 64
_SWEEPS = 4


def improve(batch: Batch, codes: Tensor, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Better codes and centers than Lloyd's.

    Moves a point from code a to b where that lowers the total error *with both means moved along*:
    ``n_b/(n_b+1)·|x−c_b|² < n_a/(n_a−1)·|x−c_a|²`` (Hartigan 1975; Telgarsky & Vattani 2010,
    eq. 2). With importance w and masses M, coordinate by coordinate:
    ``Σ_j w·M_b/(M_b+w)·(x−c_b)² < Σ_j w·M_a/(M_a−w)·(x−c_a)²``. With many points per center it is
    one step of Lloyd instead, which alone goes by ``centers``, ``(books, k, dim)``.
    """
    k, kernels = centers.shape[1], best_kernels()
    if batch.n > _FEW_POINTS * k:
        codes = kernels.assign(batch, centers)
    else:
        codes = kernels.exchange(batch, codes, k, sweeps=_SWEEPS)
    means, mass = kernels.means(batch, codes, k)
    return codes, torch.where(mass > 0, means, centers)
