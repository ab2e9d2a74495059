"""Models of half precision, trained in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from vq_plugin.replace import assemble

_HALF = (torch.float16, torch.bfloat16)


class Float32(nn.Module):
    """Runs a float32 model on inputs that may be of half precision.

    Example:
        >>> Float32(nn.Linear(2, 2))(torch.zeros(1, 2, dtype=torch.float16)).dtype
        torch.float32
    """

    def __init__(self, model: nn.Module) -> None:
        super().__init__()
        self.model = model

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """What the model gives."""
        return self.model(*tree_map(_wide, args), **tree_map(_wide, kwargs))


def is_half(model: nn.Module) -> bool:
    """Whether parameters are of half precision, whose steps are too coarse to train."""
    return any(p.dtype in _HALF for p in model.parameters())


def float32_copy(model: nn.Module) -> nn.Module:
    """A copy of a float model that can train: in float32 where it is of half precision."""
    copy = assemble(model, {})
    return copy.float() if is_half(copy) else copy


def restore_dtypes(copy: nn.Module, model: nn.Module) -> None:
    """Gives a trained copy, in place, the dtypes of the model that it was made of."""
    for there, here in ((copy.parameters(), model.parameters()), (copy.buffers(), model.buffers())):
        for value, own in zip(there, here, strict=True):
            if value.dtype != own.dtype:
                value.data = value.data.to(own.dtype)


def _wide(value: Any) -> Any:
    return value.float() if isinstance(value, Tensor) and value.dtype in _HALF else value
