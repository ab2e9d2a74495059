"""``CodebookConv1d``, ``CodebookConv2d`` and ``CodebookConv3d``."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional

from vq_plugin.nn.layer import TENSORS, CodebookLayer
from vq_plugin.ops import PRECISIONS, compiled_by_codes, packs, recording, tracing
from vq_plugin.ops.choices import Choices, ConvolutionChoices

_SETTINGS = (
    "in_channels",
    "out_channels",
    "kernel_size",
    "stride",
    "padding",
    "dilation",
    "groups",
    "padding_mode",
)
# What the kernels read beside contiguous inputs.
_LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class _CodebookConv(CodebookLayer):
    convolve: ClassVar[Callable[..., Tensor]]

    in_channels: int
    out_channels: int
    kernel_size: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...] | str
    dilation: tuple[int, ...]
    groups: int
    padding_mode: str

    def _take_settings(self, source: nn.Module) -> None:
        for name in _SETTINGS:
            setattr(self, name, getattr(source, name))
        # A sum over channels at every place: nothing else than a linear layer.
        self._pointwise = (
            set(self.kernel_size) == {1}
            and self.groups == 1
            and (isinstance(self.padding, str) or set(self.padding) == {0})
        )
        self._sample_length = self.in_channels * math.prod(self.stride)
        self._pad_widths: list[int] = list(source._reversed_padding_repeated_twice)  # type: ignore[arg-type]
        # Of each dimension both ends, as torch pads it: the last dimension comes first.
        ends = [self._pad_widths[at : at + 2] for at in range(0, len(self._pad_widths), 2)][::-1]
        self._reach = tuple(
            (sum(each) - spread * (width - 1) - 1, step)
            for each, spread, width, step in zip(
                ends, self.dilation, self.kernel_size, self.stride, strict=True
            )
        )
        self._pads_alike = self.padding_mode == "zeros" and all(a == b for a, b in ends)
        self._sides = [a if self._pads_alike else 0 for a, _ in ends]
        group = self.out_channels // self.groups if self.groups > 1 else None
        cut = self.geometry
        self._by_position = cut.axis == "channels" and packs(cut.k, group)
        self._products = (
            *(self.in_channels, self.out_channels, self.groups),
            *(cut.positions, cut.stages, cut.k, cut.dim, cut.books == 1),
        )

    def _float_like(self, device: torch.device) -> nn.Module:
        settings = {name: getattr(self, name) for name in _SETTINGS}
        return self.float_type(**settings, bias=self.bias is not None, device=device)

    def forward(self, input: Tensor) -> Tensor:
        """As the float layer: ``(batch, in_channels, ...)`` to ``(batch, out_channels, ...)``."""
        if not recording():
            if type(input) in TENSORS:
                return self._computed(input)
            return self._convolve(input, self._weight_unrecorded())
        by_codes = tracing() or (torch.compiler.is_compiling() and compiled_by_codes(input))
        if by_codes and self._pointwise and self._fits(input):
            return self._multiply_places(input)
        if by_codes and self._by_position and self._fits(input):
            return self._look_up(input)
        return self._convolve(input, self._weight())

    def _computed(self, input: Tensor) -> Tensor:
        if self._pointwise and self._fits(input) and self._kernel_runs(input):
            return self._multiply_places(input)
        if (
            self._by_position
            and self._fits(input)
            and (self._choices or self._choose())[input.shape]
            and self._kernels_take(input)
        ):
            return self._look_up(input)
        return self._convolve(input, self._weight_unrecorded())

    def _convolve(self, input: Tensor, weight: Tensor) -> Tensor:
        """Torch's own convolution, which has the errors for shapes that do not fit."""
        padding: tuple[int, ...] | str | int = self.padding
        if self.padding_mode != "zeros":
            input = functional.pad(input, self._pad_widths, mode=self.padding_mode)
            padding = 0
        return type(self).convolve(
            input, weight, self._optional("bias"), self.stride, padding, self.dilation, self.groups
        )

    def _fits(self, input: Tensor) -> bool:
        space = len(self.stride)
        # A trace keeps no condition.
        return input.dim() - space in (1, 2) and (
            tracing() or input.size(-1 - space) == self.in_channels
        )

    def _choices_of(self, precision: int, decodes: int) -> Choices:
        if not self._by_position:
            return super()._choices_of(precision, decodes)
        return ConvolutionChoices.of(self._products, precision, self._reach, decodes > 0)

    def _look_up(self, input: Tensor) -> Tensor:
        """The convolution by tables of the products of places with centers."""
        space = len(self.stride)
        if not self._pads_alike:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = functional.pad(input, self._pad_widths, mode=mode)
        alone = input.dim() == space + 1
        last = _LAST.get(input.dim())
        if not input.is_contiguous() and not (last and input.is_contiguous(memory_format=last)):
            input = input.contiguous()
        operators = torch.ops.vq.codebook_conv
        # A trace may run where gradients are on.
        differentiable = torch.is_grad_enabled() or tracing()
        output: Tensor = (operators.default if differentiable else operators.inference)(
            input.unsqueeze(0) if alone else input,
            *(self._codes, self._operand(), self._optional("scale"), self._optional("bias")),
            *(self.out_channels, self.kernel_size, self.stride, self._sides, self.dilation),
            *(self.groups, self.scheme.torch_codebook_dtype, PRECISIONS[self.precision]),
        )
        return output.squeeze(0) if alone else output

    def _multiply_places(self, input: Tensor) -> Tensor:
        """The convolution as a product with the channels of every place."""
        space = len(self.stride)
        every: tuple[Any, ...] = (..., *(slice(None, None, step) for step in self.stride))
        places = input[every]
        # Training, and channels that are last already.
        if torch.is_grad_enabled() or tracing() or not input.is_contiguous():
            vectors = places.movedim(-1 - space, -1)
            # By the shape, which the operator does not check.
            vectors = vectors.reshape(*vectors.shape[:-1], self.in_channels).contiguous()
            output = self._multiply(vectors).movedim(-1, -1 - space)
            return output.contiguous() if input.is_contiguous() else output
        shape = (*places.shape[: -1 - space], self.out_channels, *places.shape[-space:])
        images = places.reshape(
            math.prod(places.shape[: -1 - space]),
            self.in_channels,
            math.prod(places.shape[-space:]),
        )
        return self._run(torch.ops.vq.codebook_linear.pointwise, images).reshape(shape)

    def _settings_repr(self) -> str:
        parts = [f"{self.in_channels}, {self.out_channels}", f"kernel_size={self.kernel_size}"]
        ones, zeros = (1,) * len(self.stride), (0,) * len(self.stride)
        defaults = {"stride": ones, "padding": zeros, "dilation": ones, "groups": 1}
        defaults["padding_mode"] = "zeros"
        for name, default in defaults.items():
            if getattr(self, name) != default:
                parts.append(f"{name}={getattr(self, name)!r}")
        return ", ".join([*parts, f"bias={self.bias is not None}"])


class CodebookConv1d(_CodebookConv):
    """``nn.Conv1d`` whose weight is codes into codebooks; groups and padding modes included."""

    float_type = nn.Conv1d
    convolve = functional.conv1d


class CodebookConv2d(_CodebookConv):
    """``nn.Conv2d`` whose weight is codes into codebooks; groups and padding modes included.

    Example:
        >>> import vq_plugin as vq
        >>> layer = CodebookConv2d.from_float(nn.Conv2d(8, 16, 3, padding=1), vq.KM(k=16))
        >>> layer(torch.zeros(1, 8, 5, 5)).shape
        torch.Size([1, 16, 5, 5])
    """

    float_type = nn.Conv2d
    convolve = functional.conv2d


class CodebookConv3d(_CodebookConv):
    """``nn.Conv3d`` whose weight is codes into codebooks; groups and padding modes included."""

    float_type = nn.Conv3d
    convolve = functional.conv3d
