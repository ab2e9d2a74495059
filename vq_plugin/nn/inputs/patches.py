"""The patches under the kernel of a convolution, as rows of a matrix that is never built whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Patches:
    """One row for every place of the kernel: ``in/groups · kernel`` numbers, group by group.

    Attributes:
        value: The padded input, ``(samples, channels, *places)``; any float dtype.
        kernel: Size of the kernel.
        stride: Steps of the kernel, by dimension.
        dilation: Steps within the kernel, by dimension.
        groups: Groups of channels.
        backward: Whether the kernel's positions are in reverse order.

    Example:
        >>> patches = Patches(torch.arange(4.0).reshape(1, 1, 4), (3,), (1,), (1,))
        >>> patches.shape
        (1, 2, 3)
        >>> patches.rows(torch.tensor([1, 0])).tolist()
        [[[1.0, 2.0, 3.0], [0.0, 1.0, 2.0]]]
    """

    value: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int = 1
    backward: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """Samples, and places of the kernel by dimension."""
        steps = zip(self.value.shape[2:], self.kernel, self.stride, self.dilation, strict=True)
        counts = ((size - (k - 1) * d - 1) // stride + 1 for size, k, stride, d in steps)
        return (len(self.value), *counts)

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(groups, rows, inputs)``."""
        inputs = self.value.shape[1] // self.groups * math.prod(self.kernel)
        return self.groups, math.prod(self.places), inputs

    def rows(self, index: Tensor) -> Tensor:
        """Some rows, float32, ``(groups, len(index), inputs)``; ``index`` is int64."""
        windows = self.value
        for dim, (k, stride, d) in enumerate(
            zip(self.kernel, self.stride, self.dilation, strict=True), 2
        ):
            windows = windows.unfold(dim, (k - 1) * d + 1, stride)[..., ::d]
        sample, *place = torch.unravel_index(index, self.places)
        at: tuple[Any, ...] = (sample, slice(None), *place)
        taken = windows[at]
        if self.backward:
            taken = taken.flip(tuple(range(2, taken.dim())))
        by_group = taken.reshape(len(index), self.groups, -1)
        return by_group.transpose(0, 1).float().contiguous()
