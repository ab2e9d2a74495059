"""What operators round codebooks and scales to."""

from __future__ import annotations

import torch
from torch import Tensor


def rounded(values: Tensor, dtype: torch.dtype) -> Tensor:
    """Values of ``dtype`` in the dtype that they have; differentiable."""
    return values if dtype == torch.float32 else values.to(dtype).to(values.dtype)
