"""Rows that stand for all."""

from __future__ import annotations

import torch
from torch import Tensor


def stratified(rows: int, count: int, generator: torch.Generator) -> Tensor:
    """One row from each of ``count`` stretches of equal length: ascending int64, ``(count,)``.

    Every row is as likely, and all parts are there. Where a stretch ends within a row, that row may
    come twice.

    Example:
        >>> stratified(8, 4, torch.Generator().manual_seed(0)).tolist()
        [1, 3, 4, 7]
    """
    within = torch.rand(count, generator=generator, dtype=torch.float64)
    places = within.add_(torch.arange(count)).mul_(rows / count)
    return places.long().clamp_(max=rows - 1)
