"""How the weight of a layer is cut into two, and what the two layers are that multiply it back."""

from __future__ import annotations

import math
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any, ClassVar, Self

import torch
from torch import Tensor, nn

_CONVOLUTIONS: dict[int, type[nn.Module]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}


class NoSplitError(ValueError):
    """A layer of a kind that has no such split."""


class Split:
    """A weight as matrices, one for each group, that are products of two of a rank.

    Attributes:
        shape: Shape of the weight, ``(out, in/groups, *kernel)``.
        groups: Groups of channels.
        count: How many matrices.
        rows: Rows of a matrix.
        columns: Columns of a matrix.
        columns_are_inputs: Whether each column meets one of the layer's inputs; what fits the
            columns best then fits the outputs best.
    """

    columns_are_inputs: ClassVar[bool] = False

    count: int
    rows: int
    columns: int

    def __init__(self, source: Any) -> None:
        """For Linear or a convolution; ``NoSplitError`` if it has none of this kind."""
        assert isinstance(source.weight, Tensor)
        self.shape = tuple(source.weight.shape)
        self.groups = int(getattr(source, "groups", 1))
        self.outputs, self.inputs, self.kernel = (
            self.shape[0] // self.groups,
            self.shape[1],
            self.shape[2:],
        )
        self.channels = self.groups * self.inputs
        self.positions = math.prod(self.kernel)
        self.count = self.groups

    def narrowed(self, outputs: int, inputs: int) -> Self:
        """The same of a weight of one group that has so many channels left."""
        weight = torch.empty(outputs, inputs, *self.kernel, device="meta")
        return type(self)(SimpleNamespace(weight=weight, groups=1))

    @property
    def most(self) -> int:
        """The highest rank that the matrices can have."""
        return min(self.rows, self.columns)

    @property
    def size(self) -> int:
        """Parameters of both layers for each rank."""
        return self.count * (self.rows + self.columns)

    def matrices(self, weight: Tensor) -> Tensor:
        """The weight, ``(groups, rows, columns)``."""
        raise NotImplementedError

    def inputs_of(self, moments: Tensor) -> Tensor | None:
        """Moments of what meets the columns, from those of the layer's inputs.

        ``(groups, inputs)`` of each, or ``(groups, inputs, inputs)`` of pairs; where columns
        recur at several places of the kernel, their mean. ``None`` where all channels and places
        meet each column.
        """
        raise NotImplementedError

    def weights(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:
        """Weights of the layers from ``(groups, rows, rank)`` and ``(groups, rank, columns)``."""
        raise NotImplementedError

    def filters(self, first: Tensor) -> Tensor:
        """What the first layer makes of the layer's inputs, for one place of the second's kernel.

        ``(groups, hidden, inputs)``, where ``hidden`` are the inputs of the second layer's weight.
        """
        raise NotImplementedError

    def weight(self, first: Tensor, second: Tensor) -> Tensor:
        """The weight that the two layers stand for; undoes :meth:`weights` and :meth:`matrices`."""
        raise NotImplementedError

    def layers(self, source: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:
        """The two layers, on the meta device and without bias."""
        raise NotImplementedError


class ChannelSplit(Split):
    """All outputs by all inputs: few filters of the whole kernel, and then mixes of them.

    The truncated singular value decomposition of a matrix; of a convolution the channel
    decomposition of Zhang et al. 2015 (arXiv 1505.06798).
    """

    columns_are_inputs = True

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        self.rows, self.columns = self.outputs, self.inputs * self.positions

    def matrices(self, weight: Tensor) -> Tensor:  # noqa: D102 - inherited
        return weight.reshape(self.groups, self.rows, self.columns)

    def inputs_of(self, moments: Tensor) -> Tensor:  # noqa: D102 - inherited
        return moments

    def weights(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        ones = [1] * len(self.kernel)
        first = right.reshape(-1, self.inputs, *self.kernel)
        return first, left.reshape(self.shape[0], -1, *ones)

    def filters(self, first: Tensor) -> Tensor:  # noqa: D102 - inherited
        return first.reshape(self.groups, -1, self.columns)

    def weight(self, first: Tensor, second: Tensor) -> Tensor:  # noqa: D102 - inherited
        left = second.reshape(self.groups, self.rows, -1)
        return (left @ first.reshape(self.groups, -1, self.columns)).reshape(self.shape)

    def layers(self, source: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:  # noqa: D102
        if isinstance(source, nn.Linear):
            return _linear(self.columns, rank), _linear(rank, self.rows)
        hidden = self.groups * rank
        first = _convolution(source, self.channels, hidden, groups=self.groups)
        mix = _mix(len(self.kernel), hidden, self.shape[0], self.groups)
        return first, mix


class SpatialSplit(Split):
    """The first dimension of a kernel, then the others: k×1 and 1×k (Jaderberg 2014, 1405.3866)."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        if len(self.kernel) < 2:
            kind = type(source).__name__
            raise NoSplitError(f"split='spatial' needs two kernel dimensions, {kind} has fewer")
        self._along, self._across = self.kernel[0], math.prod(self.kernel[1:])
        self.rows, self.columns = self.outputs * self._across, self.inputs * self._along

    def matrices(self, weight: Tensor) -> Tensor:  # noqa: D102 - inherited
        cut = (self.groups, self.outputs, self.inputs, self._along, self._across)
        by_place = weight.reshape(cut).permute(0, 1, 4, 2, 3)
        return by_place.reshape(self.groups, self.rows, self.columns)

    def inputs_of(self, moments: Tensor) -> Tensor:  # noqa: D102 - inherited
        one = (self.inputs, self._along, self._across)
        if moments.dim() == 2:
            return moments.reshape(self.groups, *one).mean(3).flatten(1)
        pairs = moments.reshape(self.groups, *one, *one).diagonal(0, 3, 6).mean(-1)
        return pairs.reshape(self.groups, self.columns, self.columns)

    def weights(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        ones = [1] * (len(self.kernel) - 1)
        first = right.reshape(-1, self.inputs, self._along, *ones)
        by_place = left.reshape(self.groups, self.outputs, self._across, -1).mT
        return first, by_place.reshape(self.shape[0], -1, 1, *self.kernel[1:])

    def filters(self, first: Tensor) -> Tensor:  # noqa: D102 - inherited
        right = first.reshape(self.groups, -1, self.inputs, self._along)
        here = torch.eye(self._across, dtype=first.dtype)
        by_place = torch.einsum("grca,bd->grbcad", right, here)
        return by_place.reshape(self.groups, -1, self.inputs * self.positions)

    def weight(self, first: Tensor, second: Tensor) -> Tensor:  # noqa: D102 - inherited
        left = second.reshape(self.groups, self.outputs, -1, self._across)
        right = first.reshape(self.groups, -1, self.inputs, self._along)
        return torch.einsum("gorb,grca->gocab", left, right).reshape(self.shape)

    def layers(self, source: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:  # noqa: D102
        hidden, along, across = self.groups * rank, slice(0, 1), slice(1, None)
        first = _convolution(source, self.channels, hidden, groups=self.groups, only=along)
        second = _convolution(source, hidden, self.shape[0], groups=self.groups, only=across)
        return first, second


class KernelSplit(Split):
    """All kernels of a convolution as mixes of few (Li et al. 2020, PENNI, arXiv 2005.07133)."""

    def __init__(self, source: Any) -> None:
        super().__init__(source)
        if self.positions == 1:
            raise NoSplitError(f"this {type(source).__name__} has no kernels of several positions")
        # Groups have their kernels in common.
        self.count, self.rows, self.columns = 1, self.shape[0] * self.inputs, self.positions

    def matrices(self, weight: Tensor) -> Tensor:  # noqa: D102 - inherited
        return weight.reshape(1, self.rows, self.columns)

    def inputs_of(self, moments: Tensor) -> None:  # noqa: D102 - inherited
        return None

    def weights(self, left: Tensor, right: Tensor) -> tuple[Tensor, Tensor]:  # noqa: D102
        ones = [1] * len(self.kernel)
        return right.reshape(-1, 1, *self.kernel), left.reshape(self.shape[0], -1, *ones)

    def filters(self, first: Tensor) -> Tensor:  # noqa: D102 - inherited
        alone = torch.eye(self.inputs, dtype=first.dtype)
        of_one = torch.einsum("dk,cb->cdbk", first.flatten(1), alone)
        by_group = of_one.reshape(1, -1, self.inputs * self.positions)
        return by_group.expand(self.groups, -1, -1)

    def weight(self, first: Tensor, second: Tensor) -> Tensor:  # noqa: D102 - inherited
        return (second.reshape(self.rows, -1) @ first.flatten(1)).reshape(self.shape)

    def layers(self, source: nn.Module, rank: int) -> tuple[nn.Module, nn.Module]:  # noqa: D102
        mix = _mix(len(self.kernel), rank * self.channels, self.shape[0], self.groups)
        return _convolution(source, 1, rank, groups=1), mix


def _linear(inputs: int, outputs: int) -> nn.Module:
    return nn.Linear(inputs, outputs, bias=False, device="meta")


def _mix(dims: int, inputs: int, outputs: int, groups: int) -> nn.Module:
    """A convolution of one position."""
    return _CONVOLUTIONS[dims](inputs, outputs, 1, groups=groups, bias=False, device="meta")


def _convolution(
    source: Any, inputs: int, outputs: int, *, groups: int, only: slice = slice(None)
) -> nn.Module:
    """A convolution as ``source`` in ``only`` some dimensions, of one position in the others."""
    dims = len(source.kernel_size)

    def here(values: Sequence[int], elsewhere: int) -> tuple[int, ...]:
        kept = range(dims)[only]
        return tuple(value if at in kept else elsewhere for at, value in enumerate(values))

    padding = source.padding if isinstance(source.padding, str) else here(source.padding, 0)
    return _CONVOLUTIONS[dims](
        inputs,
        outputs,
        here(source.kernel_size, 1),
        stride=here(source.stride, 1),
        padding=padding,
        dilation=here(source.dilation, 1),
        groups=groups,
        bias=False,
        padding_mode=source.padding_mode,
        device="meta",
    )
