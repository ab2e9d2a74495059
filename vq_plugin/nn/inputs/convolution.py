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
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    padded = _pad(value, module._reversed_padding_repeated_twice, mode)
    yield Patches(padded, module.kernel_size, module.stride, module.dilation, module.groups)


def channels(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Patches]:
    """The channels of a convolution's input at every place, without kernel and padding."""
    del parameter
    assert isinstance(module, nn.Conv1d | nn.Conv2d | nn.Conv3d)
    yield places(batched(first_argument(arguments), len(module.kernel_size)), module.groups)


def places(value: Tensor, groups: int) -> Patches:
    """The channels at every place of ``value``, ``(samples, channels, *places)``."""
    one = (1,) * (value.dim() - 2)
    return Patches(value, one, one, one, groups)


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
    widths: list[int] = []
    for k, d, cropped, more in zip(kernel, dilation, padding, output_padding, strict=True):
        reach = d * (k - 1) - cropped
        widths = [reach, reach + more, *widths]
    one = (1,) * len(kernel)
    return Patches(
        functional.pad(spread, widths), tuple(kernel), one, tuple(dilation), groups, backward=True
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
    widths: list[int] = []
    for at, (k, d) in enumerate(zip(kernel, dilation, strict=True)):
        if padding == "same":
            reach = d * (k - 1)
            widths = [reach // 2, reach - reach // 2, *widths]
        else:
            both = 0 if isinstance(padding, str) else padding[at]
            widths = [both, both, *widths]
    padded = _pad(value, widths, "constant")
    return Patches(padded, tuple(kernel), tuple(stride), tuple(dilation), groups)


def batched(value: Tensor, dims: int) -> Tensor:
    """With a dimension of samples, whether it had one or not."""
    return value.unsqueeze(0) if value.dim() == dims + 1 else value


def _pad(value: Tensor, widths: Sequence[int], mode: str) -> Tensor:
    # Padding by nothing copies, too.
    return functional.pad(value, list(widths), mode) if any(widths) else value
