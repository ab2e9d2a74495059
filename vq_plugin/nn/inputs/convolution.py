"""Inputs of convolutions: the patches under the kernel."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.nn.inputs.matrix import PIECE, Arguments, first_argument


def convolved(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The patches of a convolution, every place of every sample.

    Example:
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> [patches] = convolved(nn.Conv1d(1, 1, 3), {"input": x}, "weight")
        >>> patches.tolist()
        [[[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    """
    del parameter
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    value = _batched(first_argument(arguments), len(module.kernel_size))
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = functional.pad(value, module._reversed_padding_repeated_twice, mode)
    yield from _patches(padded, module.kernel_size, module.stride, module.dilation, module.groups)


def channels(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The channels of a convolution's input at every place, without kernel and padding."""
    del parameter
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    value = _batched(first_argument(arguments), len(module.kernel_size))
    places = value.reshape(len(value), module.groups, -1, value[0, 0].numel())
    yield places.permute(1, 0, 3, 2).reshape(module.groups, -1, places.shape[2])


def transposed_convolved(
    module: nn.Module, arguments: Arguments, parameter: str
) -> Iterator[Tensor]:
    """The patches of a transposed convolution.

    It is the convolution, by the reversed kernel, of its input with zeros between the places
    (Dumoulin & Visin 2016, arXiv 1603.07285, section 4).
    """
    del parameter
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    assert not isinstance(module.padding, str)
    dims = len(module.kernel_size)
    value = _batched(first_argument(arguments), dims)
    spread = value.new_zeros(
        *value.shape[:2],
        *[
            (size - 1) * stride + 1
            for size, stride in zip(value.shape[2:], module.stride, strict=True)
        ],
    )
    places: tuple[Any, ...] = (..., *(slice(None, None, stride) for stride in module.stride))
    spread[places] = value
    extra = module._output_padding(
        value,
        arguments.get("output_size"),
        list(module.stride),
        list(module.padding),
        list(module.kernel_size),
        dims,
        list(module.dilation),
    )
    padding: list[int] = []
    for kernel, dilation, cropped, more in zip(
        module.kernel_size, module.dilation, module.padding, extra, strict=True
    ):
        reach = dilation * (kernel - 1) - cropped
        padding = [reach, reach + more, *padding]
    padded = functional.pad(spread, padding)
    for patches in _patches(
        padded, module.kernel_size, (1,) * dims, module.dilation, module.groups
    ):
        kernels = patches.reshape(*patches.shape[:2], -1, *module.kernel_size)
        yield kernels.flip(tuple(range(3, 3 + dims))).flatten(2)


def _batched(value: Tensor, dims: int) -> Tensor:
    return (value.unsqueeze(0) if value.dim() == dims + 1 else value).float()


def _patches(
    padded: Tensor,
    kernel_size: tuple[int, ...],
    strides: tuple[int, ...],
    dilations: tuple[int, ...],
    groups: int,
) -> Iterator[Tensor]:
    steps = zip(kernel_size, strides, dilations, padded.shape[2:], strict=True)
    # Where the kernel may stand, by dimension and by its own position there.
    places = [
        [
            slice(at * dilation, at * dilation + size - (kernel - 1) * dilation, stride)
            for at in range(kernel)
        ]
        for kernel, stride, dilation, size in steps
    ]
    positions = list(itertools.product(*places))
    one = len(positions) * padded[0].numel()
    for some in torch.split(padded, max(1, PIECE // one)):
        taken = [some[slice(None), slice(None), *at] for at in positions]
        # (samples, channels, *places, kernel) to (groups, samples · places, channels · kernel)
        grid = torch.stack(taken, -1)
        grid = grid.reshape(len(grid), groups, -1, *grid.shape[2:])
        grid = grid.movedim(1, 0).movedim(2, -2)
        yield grid.reshape(groups, -1, grid.shape[-2] * grid.shape[-1])
