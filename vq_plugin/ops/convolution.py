"""The operator ``vq::codebook_conv``: a convolution whose weight is codes into books of channels.

As in :mod:`vq_plugin.ops.library`, a kernel in C++ takes its place on the CPU; this file is what it
computes, in pure torch, with fakes and gradients.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.library import Library, register_fake
from torch.nn import functional

from vq_plugin.codebook import decode
from vq_plugin.ops.gradients import codebook_gradients
from vq_plugin.ops.library import (
    PRECISIONS,
    Precision,
    below_autograd,
    canonical,
    differentiable,
    load_kernels,
    under_autocast,
)
from vq_plugin.ops.rounding import rounded

_CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}


def codebook_conv(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None = None,
    bias: Tensor | None = None,
    *,
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int = 1,
    codebook_dtype: torch.dtype = torch.float32,
    precision: Precision = "exact",
) -> Tensor:
    """``F.conv1d``, ``conv2d`` or ``conv3d`` with a weight that is codes into books of channels.

    The weight is that of ``layout="channels"`` (:class:`vq_plugin.PQ`). The products of an input
    place with the centers are computed once and looked up by every kernel position (Quantized CNN,
    Wu et al. 2016, arXiv 1512.06473, section 3.2). Differentiable in ``input``, ``codebooks``,
    ``scale`` and ``bias``.

    Args:
        input: Floats, ``(batch, in_channels, *size)``.
        codes: Integers, ``(stages, out_channels, positions · pieces)``, or what :func:`pack_codes`
            made of them; a position of the kernel has ``pieces`` sub-vectors of channels.
        codebooks: Floats, ``(stages, 1, pieces or 1, k, dim)``.
        scale: Floats, ``(out_channels,)``, or ``None``.
        bias: Floats, ``(out_channels,)``, or ``None``.
        out_channels: Outputs.
        kernel_size: Of one, two or three dimensions, as all below.
        stride: As for torch's convolution.
        padding: Zeros on both sides of each dimension.
        dilation: As for torch's convolution.
        groups: As for torch's convolution.
        codebook_dtype: As :func:`codebook_linear`.
        precision: As :func:`codebook_linear`.

    Returns:
        Floats, ``(batch, out_channels, *size)``, in the dtype of ``input``.

    Raises:
        RuntimeError: If the shapes do not fit.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.quantize_weight(torch.randn(32, 8, 3, 3), vq.PQ(dim=4, layout="channels"))
        >>> x = torch.randn(1, 8, 6, 6)
        >>> y = codebook_conv(
        ...     x, small.codes, small.codebooks.float(), out_channels=32,
        ...     kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), dilation=(1, 1),
        ... )
        >>> expected = functional.conv2d(x, small.decode(), padding=1)
        >>> bool(torch.allclose(y, expected, atol=1e-5))
        True
    """
    load_kernels()
    result: Tensor = torch.ops.vq.codebook_conv(
        input, codes, codebooks, scale, bias, out_channels, list(kernel_size), list(stride),
        list(padding), list(dilation), groups, codebook_dtype, PRECISIONS[precision],
    )  # fmt: skip
    return result


def _decoded(
    codes: Tensor, codebooks: Tensor, scale: Tensor | None, shape: list[int], dtype: torch.dtype
) -> Tensor:
    stages, groups, books, _, dim = codebooks.shape
    pieces = -(-shape[1] // dim)
    length = math.prod(shape[2:]) * pieces * dim
    plain = canonical(codes, shape[0], length, dim)
    if plain.shape != (stages, shape[0], length // dim) or groups > 1 or books not in (1, pieces):
        raise RuntimeError(
            f"codes {tuple(codes.shape)} and codebooks {tuple(codebooks.shape)} do not make a "
            f"weight of shape {tuple(shape)}"
        )
    return decode(
        plain,
        rounded(codebooks, dtype),
        None if scale is None else rounded(scale, dtype),
        shape=tuple(shape),
        axis="channels",
    )


def _weight_shape(input: Tensor, settings: Sequence[Any]) -> list[int]:
    out_channels, kernel, _, _, _, groups, *_ = settings
    return [out_channels, input.shape[1] // groups, *kernel]


def conv_in_torch(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    *settings: Any,
) -> Tensor:
    """The convolution with the decoded weight, by torch; arguments are the operator's."""
    _, kernel, stride, padding, dilation, groups, dtype, _ = settings
    weight = _decoded(codes, codebooks, scale, _weight_shape(input, settings), dtype)
    convolve = _CONVOLVE[len(kernel)]
    output = convolve(input, weight.contiguous(), bias, stride, padding, dilation, groups)
    return output.contiguous(memory_format=_memory_format(input))


def _memory_format(input: Tensor) -> torch.memory_format:
    """Of the output; torch's own kernels differ among themselves."""
    last = {4: torch.channels_last, 5: torch.channels_last_3d}.get(input.dim())
    if last is None or input.is_contiguous() or not input.is_contiguous(memory_format=last):
        return torch.contiguous_format
    return last


def conv_fake(input: Tensor, *rest: Any) -> Tensor:
    """An output of the operator's shape and layout; ``rest`` as the operator's."""
    out_channels, kernel, stride, padding, dilation, *_ = rest[4:]
    size = [
        (length + 2 * pad - spread * (width - 1) - 1) // step + 1
        for length, width, step, pad, spread in zip(
            input.shape[2:], kernel, stride, padding, dilation, strict=True
        )
    ]
    output = input.new_empty((input.shape[0], out_channels, *size))
    return output.contiguous(memory_format=_memory_format(input))


_SCHEMA = (
    "(Tensor input, Tensor codes, Tensor codebooks, Tensor? scale, Tensor? bias, "
    "int out_channels, int[] kernel_size, int[] stride, int[] padding, int[] dilation, int groups, "
    "ScalarType codebook_dtype, int precision) -> Tensor"
)
_library = Library("vq", "FRAGMENT")  # type: ignore[no-untyped-call]
# The second, without a gradient: what autograd adds costs more than a small layer. The third is
# what the native kernel leaves to torch.
for _name in ("codebook_conv", "codebook_conv.inference", "decoded_conv"):
    _library.define(_name + _SCHEMA, tags=torch.Tag.pt2_compliant_tag)  # type: ignore[no-untyped-call]
    _library.impl(_name, conv_in_torch, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"vq::{_name}", conv_fake, lib=_library)


class _Conv(torch.autograd.Function):
    """``codebook_conv`` and its gradients."""

    @staticmethod
    def forward(ctx: Any, keys: Any, *operands: Any) -> Any:
        input, codes, codebooks, scale, bias, *ctx.settings = operands
        ctx.save_for_backward(input, codes, codebooks, scale)
        ctx.bias = None if bias is None else list(bias.shape)
        return below_autograd(torch.ops.vq.codebook_conv.default, keys, operands)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        input, codes, codebooks, scale = ctx.saved_tensors
        _, wants_input, _, wants_codebooks, wants_scale, wants_bias, *_ = ctx.needs_input_grad
        _, kernel, stride, padding, dilation, groups, dtype, _ = ctx.settings
        shape = _weight_shape(input, ctx.settings)
        grad_input, grad_weight, grad_bias = torch.ops.aten.convolution_backward(
            grads[0], input, _decoded(codes, codebooks, scale, shape, dtype), ctx.bias, stride,
            padding, dilation, False, [0] * len(kernel), groups,
            [wants_input, wants_codebooks or wants_scale, wants_bias],
        )  # fmt: skip
        grad_codebooks = grad_scale = None
        if wants_codebooks or wants_scale:
            dim = codebooks.shape[4]
            pieces = -(-shape[1] // dim)
            padding = (0, pieces * dim - shape[1])
            by_position = functional.pad(grad_weight.flatten(2).mT, padding)
            matrix = by_position.reshape(shape[0], -1)
            grad_codebooks, grad_scale = codebook_gradients(
                matrix,
                codes,
                rounded(codebooks, dtype),
                None if scale is None else rounded(scale, dtype),
            )
        found = (None, grad_input, None, grad_codebooks, grad_scale, grad_bias)
        return *found, *[None] * len(ctx.settings)


_operator = torch.ops.vq.codebook_conv.default
_run = differentiable(_operator, _Conv, conv_in_torch)
_library.impl(_operator, _run, "Autograd", with_keyset=True)  # type: ignore[no-untyped-call]
for _operator in (torch.ops.vq.codebook_conv.default, torch.ops.vq.codebook_conv.inference):
    _library.impl(_operator, under_autocast(_operator), "AutocastCPU")  # type: ignore[no-untyped-call]
# Elsewhere torch's convolution itself takes the half of float32.
for _device in ("AutocastCUDA", "AutocastXPU", "AutocastMPS"):
    for _name in ("codebook_conv", "codebook_conv.inference"):
        _library.impl(_name, conv_in_torch, _device)  # type: ignore[no-untyped-call]
