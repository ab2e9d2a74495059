"""The patches under the kernel of a convolution, as rows of a matrix that is never built whole."""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.ops.fit import native_fits, operators

# Numbers that are read at a time: near a core's second-level cache.
_PIECE = 1 << 18


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
        # On one thread: sums may round differently on several.
        with worker_pool():
            by_place = self.value.detach().flatten(2)
            # Torch's norm takes float64 to nothing less.
            dtype = torch.promote_types(by_place.dtype, torch.float32)
            norms: Tensor = torch.linalg.vector_norm(by_place, dim=2, dtype=dtype)
            return norms.double().square().sum(0).reshape(self.groups, -1)

    def rows(self, index: Tensor) -> Tensor:
        """Some rows, float32, ``(groups, len(index), inputs)``; ``index`` is int64."""
        groups, _, inputs = self.shape
        # Places last, in which loops are long.
        taken = self.value.new_empty(groups, inputs, len(index), dtype=torch.float32)
        step = max(1, _PIECE // max(1, groups * inputs))
        if self._native:
            read = self._read_natively
        else:
            read = partial(self._read, self.value.detach().flatten())

        def fill(start: int) -> None:
            some = slice(start, start + step)
            taken[:, :, some] = read(index[some]).reshape(groups, inputs, -1)

        deterministic_map(fill, range(0, len(index), step))
        return taken.mT

    @property
    def _native(self) -> bool:
        """Whether the native operator reads it; a graph that is compiled has torch's."""
        known = self.value.device.type == "cpu" and self.value.dtype is torch.float32
        return known and not torch.compiler.is_compiling() and native_fits()

    def _read_natively(self, index: Tensor) -> Tensor:
        """``(channels · kernel, len(index))``."""
        before, dilation = [each for each, _ in self.padding], [*self.dilation]
        if self.backward:
            # From the last position, in steps back.
            spans = zip(before, self.kernel, dilation, strict=True)
            before = [each - (k - 1) * d for each, k, d in spans]
            dilation = [-d for d in dilation]
        rows: Tensor = operators().patch_rows(
            self.value.detach(), index, self.kernel, self.stride, before, dilation, self.places
        )
        return rows

    def _read(self, values: Tensor, index: Tensor) -> Tensor:
        """The same of all ``values``."""
        device, channels = index.device, self.value.shape[1]
        # Where each position of the kernel reads, and whether that is no padding; ``rest`` becomes
        # the samples.
        reads, inside, size, rest = index.new_zeros(1, len(index)), None, 1, index
        for at in reversed(range(len(self.kernel))):
            length, (before, _) = self.value.shape[2 + at], self.padding[at]
            positions = torch.arange(self.kernel[at], device=device) * self.dilation[at] - before
            if self.backward:
                positions = positions.flip(0)
            read = positions.unsqueeze(1) + rest % self.places[at] * self.stride[at]
            rest = rest // self.places[at]
            there = ((read >= 0) & (read < length)).unsqueeze(1)
            inside = (there if inside is None else there & inside).flatten(0, 1)
            reads = (read.clamp(0, length - 1).unsqueeze(1) * size + reads).flatten(0, 1)
            size *= length
        # Number by number: an index for every dimension takes three times as long.
        reads += rest * (channels * size)
        first = torch.arange(channels, device=device).reshape(self.groups, -1, 1, 1) * size
        every = reads + first
        taken = values.index_select(0, every.flatten()).float().reshape(every.shape)
        if inside is not None and any(before > 0 or after > 0 for before, after in self.padding):
            taken *= inside
        return taken.flatten(0, 2)
