"""Inputs of convolutions: the patches under the kernel."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.nn.inputs.matrix import Arguments, first_argument
from vq_plugin.nn.inputs.patches import Patches


def convolved(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Patches]:
    """The patches of a convolution, every place of every sample.

    Example:
        >>> import torch
        >>> x = torch.arange(4.0).reshape(1, 1, 4)
        >>> [patches] = convolved(nn.Conv1d(1, 1, 3), {"input": x}, "weight")
        >>> patches.rows(torch.arange(2)).tolist()
        [[[0.0, 1.0, 2.0], [1.0, 2.0, 3.0]]]
    """
    del parameter
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    value = batched(first_argument(arguments), len(module.kernel_size))
    widths = list(module._reversed_padding_repeated_twice)
    if module.padding_mode != "zeros":
        value = functional.pad(value, widths, module.padding_mode)
        widths = [0] * len(widths)
    # Pairs of widths, of the last dimension first.
    padding = tuple(zip(widths[::2], widths[1::2], strict=True))[::-1]
    yield Patches(value, module.kernel_size, module.stride, padding, module.dilation, module.groups)


def channels(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Patches]:
    """The channels of a convolution's input at every place, without kernel and padding."""
    del parameter
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    yield places(batched(first_argument(arguments), len(module.kernel_size)), module.groups)


def places(value: Tensor, groups: int) -> Patches:
    """The channels at every place of ``value``, ``(samples, channels, *places)``."""
    one = (1,) * (value.dim() - 2)
    nothing = ((0, 0),) * len(one)
    return Patches(value, one, one, nothing, one, groups)


def transposed_convolved(
    module: nn.Module, arguments: Arguments, parameter: str
) -> Iterator[Patches]:
    """The patches of a transposed convolution."""
    del parameter
    assert isinstance(module, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)
    assert not isinstance(module.padding, str)
    dims = len(module.kernel_size)
    value = batched(first_argument(arguments), dims)
    extra = module._output_padding(
        value,
        arguments.get("output_size"),
        list(module.stride),
        list(module.padding),
        list(module.kernel_size),
        dims,
        list(module.dilation),
    )
    yield transposed_patches(
        value, module.kernel_size, module.stride, module.padding, extra, module.groups,
        module.dilation,
    )  # fmt: skip


def transposed_patches(
    value: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    output_padding: Sequence[int],
    groups: int,
    dilation: Sequence[int],
) -> Patches:
    """The patches of a transposed convolution of ``value``, ``(samples, channels, *places)``.

    It is the convolution, by the reversed kernel, of its input with zeros between the places
    (Dumoulin & Visin 2016, arXiv 1603.07285, section 4).
    """
    sizes = zip(value.shape[2:], stride, strict=True)
    spread = value.new_zeros(*value.shape[:2], *[(size - 1) * step + 1 for size, step in sizes])
    apart: tuple[Any, ...] = (..., *(slice(None, None, step) for step in stride))
    spread[apart] = value
    around = []
    for k, d, cropped, more in zip(kernel, dilation, padding, output_padding, strict=True):
        reach = d * (k - 1) - cropped
        around.append((reach, reach + more))
    one = (1,) * len(kernel)
    return Patches(
        spread, tuple(kernel), one, tuple(around), tuple(dilation), groups, backward=True
    )


def convolution_patches(
    value: Tensor,
    kernel: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int] | str,
    dilation: Sequence[int],
    groups: int,
) -> Patches:
    """The patches of a convolution of ``value``, padded with zeros as ``conv2d`` does."""
    around = []
    for at, (k, d) in enumerate(zip(kernel, dilation, strict=True)):
        if padding == "same":
            reach = d * (k - 1)
            around.append((reach // 2, reach - reach // 2))
        else:
            both = 0 if isinstance(padding, str) else padding[at]
            around.append((both, both))
    return Patches(value, tuple(kernel), tuple(stride), tuple(around), tuple(dilation), groups)


def batched(value: Tensor, dims: int) -> Tensor:
    """With a dimension of samples, whether it had one or not."""
    return value.unsqueeze(0) if value.dim() == dims + 1 else value
