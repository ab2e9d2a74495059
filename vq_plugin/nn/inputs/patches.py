"""The patches under the kernel of a convolution, as rows of a matrix that is never built whole."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.parallel import worker_pool


@dataclass(frozen=True)
class Patches:
    """One row for every place of the kernel: ``in/groups · kernel`` numbers, group by group.

    Attributes:
        value: The input, ``(samples, channels, *places)``; any float dtype.
        kernel: Size of the kernel.
        stride: Steps of the kernel, by dimension.
        padding: Zeros before and after the input, by dimension; less than 0 crops.
        dilation: Steps within the kernel, by dimension.
        groups: Groups of channels.
        backward: Whether the kernel's positions are in reverse order.

    Example:
        >>> patches = Patches(torch.arange(4.0).reshape(1, 1, 4), (3,), (1,), ((0, 1),), (1,))
        >>> patches.shape
        (1, 3, 3)
        >>> patches.rows(torch.tensor([2, 0])).tolist()
        [[[2.0, 3.0, 0.0], [0.0, 1.0, 2.0]]]
    """

    value: Tensor
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[tuple[int, int], ...]
    dilation: tuple[int, ...]
    groups: int = 1
    backward: bool = False

    @property
    def places(self) -> tuple[int, ...]:
        """Places of the kernel, by dimension."""
        sizes = zip(self.value.shape[2:], self.padding, strict=True)
        steps = zip(sizes, self.kernel, self.stride, self.dilation, strict=True)
        return tuple(
            (size + sum(padding) - (k - 1) * d - 1) // stride + 1
            for (size, padding), k, stride, d in steps
        )

    @property
    def shape(self) -> tuple[int, int, int]:
        """``(groups, rows, inputs)``."""
        inputs = self.value.shape[1] // self.groups * math.prod(self.kernel)
        return self.groups, len(self.value) * math.prod(self.places), inputs

    @property
    def plain(self) -> bool:
        """Whether the rows are all the places of the input as they are."""
        still = all(before == after == 0 for before, after in self.padding)
        return still and {*self.kernel, *self.stride} == {1}

    def squares(self) -> Tensor:
        """Sums of squares over all rows of :attr:`plain` patches, float64, ``(groups, inputs)``."""
        sums = torch.zeros(self.value.shape[1], dtype=torch.float64, device=self.value.device)
        # One sample at a time, on one thread: sums may round differently on several.
        with worker_pool():
            for sample in self.value.detach():
                sums += sample.float().square().flatten(1).sum(1)
        return sums.reshape(self.groups, -1)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows, float32, ``(groups, len(index), inputs)``; ``index`` is int64."""
        count, device = len(index), index.device
        # Where each position of the kernel reads, and whether that is no padding; ``rest`` becomes
        # the samples.
        reads, inside, step, rest = index.new_zeros(count, 1), None, 1, index
        for at in reversed(range(len(self.kernel))):
            size, (before, _) = self.value.shape[2 + at], self.padding[at]
            positions = torch.arange(self.kernel[at], device=device) * self.dilation[at] - before
            if self.backward:
                positions = positions.flip(0)
            read = (rest % self.places[at] * self.stride[at]).unsqueeze(1) + positions
            rest = rest // self.places[at]
            there = ((read >= 0) & (read < size)).unsqueeze(2)
            inside = (there if inside is None else there & inside.unsqueeze(1)).flatten(1)
            reads = (read.clamp(0, size - 1).unsqueeze(2) * step + reads.unsqueeze(1)).flatten(1)
            step *= size
        by_channel = self.value.flatten(2)
        channels = torch.arange(by_channel.shape[1], device=device).unsqueeze(1)
        taken = by_channel[rest.reshape(-1, 1, 1), channels, reads.unsqueeze(1)].float()
        if inside is not None and any(before > 0 or after > 0 for before, after in self.padding):
            taken *= inside.unsqueeze(1)
        return taken.reshape(count, self.groups, -1).transpose(0, 1).contiguous()
