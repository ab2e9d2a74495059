"""Codebook layers as operators ``vq_plugin::*`` of ExecuTorch programs, which run from their codes.

Their kernels are in the library of :func:`vq_plugin.executorch_library`. Codes lie as kernels read
them: up to 16 centers in 4 bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.library import Library, register_fake
from torch.nn import functional

from vq_plugin.codebook import decode_rows
from vq_plugin.export.native_layers import has_kernel, multiplies
from vq_plugin.fields import pack_fields
from vq_plugin.nn import CodebookEmbedding, CodebookLinear, CodedWeight
from vq_plugin.nn.conv import _CodebookConv
from vq_plugin.ops import PRECISIONS
from vq_plugin.ops.convolution import conv_fake
from vq_plugin.ops.packing import NIBBLE_CENTERS

_WEIGHT = "Tensor input, Tensor codes, Tensor codebooks, Tensor? scale"
_PLACES = "int out_channels, int[] kernel_size, int[] stride, int[] padding, int[] dilation"


def _linear(*operands: Any) -> Any:
    *rest, precision = operands
    return torch.ops.vq.codebook_linear.inference(*rest, torch.float32, precision)


def _linear_fake(input: Tensor, *rest: Any) -> Tensor:
    return input.new_empty((*input.shape[:-1], rest[4]))


def _conv(*operands: Any) -> Any:
    *rest, precision = operands
    return torch.ops.vq.codebook_conv.inference(*rest, torch.float32, precision)


def _flat_conv(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_channels: int,
    kernel_size: list[int],
    *settings: Any,
) -> Tensor:
    *places, along_out, group, _ = settings
    shape = [out_channels, input.shape[1], *kernel_size]
    weight = torch.ops.vq.dequantize_codebook(
        *(codes, codebooks, scale, shape, along_out, group, torch.float32)
    )
    stride, padding, dilation = places
    return torch.convolution(
        input, weight, bias, stride, padding, dilation, False, [0] * len(kernel_size), 1
    )


def _embedding(
    rows: Tensor, codes: Tensor, codebooks: Tensor, scale: Tensor | None, length: int, group: int
) -> Tensor:
    k = codebooks.shape[3]
    shape = (codes.shape[1], length)
    return decode_rows(
        *(codes, codebooks, scale, rows), shape=shape, axis="in", group=group or None, bits=_bits(k)
    )


def _embedding_fake(rows: Tensor, codes: Tensor, codebooks: Tensor, *rest: Any) -> Tensor:
    return codebooks.new_empty((*rows.shape, rest[1]))


_WEIGHT = "Tensor input, Tensor codes, Tensor codebooks, Tensor? scale"
_PLACES = "int out_channels, int[] kernel_size, int[] stride, int[] padding, int[] dilation"
_CUT = "bool along_out, int group, int precision"
_library = Library("vq_plugin", "DEF")  # type: ignore[no-untyped-call]
for _name, _arguments, _body, _fake in (
    ("linear", f"Tensor? bias, int out_features, {_CUT}", _linear, _linear_fake),
    ("conv", f"Tensor? bias, {_PLACES}, int groups, int precision", _conv, conv_fake),
    ("flat_conv", f"Tensor? bias, {_PLACES}, {_CUT}", _flat_conv, conv_fake),
    ("embedding", "int embedding_dim, int group", _embedding, _embedding_fake),
):
    _library.define(f"codebook_{_name}({_WEIGHT}, {_arguments}) -> Tensor")  # type: ignore[no-untyped-call]
    _library.impl(f"codebook_{_name}", _body, "CompositeExplicitAutograd")  # type: ignore[no-untyped-call]
    register_fake(f"vq_plugin::codebook_{_name}", _fake, lib=_library)
    # What ExecuTorch has in its place once memory is planned; it runs there alone.
    _out = f"({_WEIGHT}, {_arguments}, *, Tensor(a!) out) -> Tensor(a!)"
    _library.define(f"codebook_{_name}.out{_out}")  # type: ignore[no-untyped-call]


def take_operators(model: nn.Module, layers: Mapping[str, CodedWeight]) -> dict[str, CodedWeight]:
    """Has layers of a plain model be operators, and hold codes as those read them.

    The layers of ONNX's native files, and convolutions of one group that are not cut by channels:
    where a weight is no constant, ExecuTorch has no faster convolution.

    Returns:
        The layers that have no operator.
    """
    rest = {}
    for name, coded in layers.items():
        layer = model.get_submodule(name)
        if isinstance(layer, CodebookEmbedding) and has_kernel(layer):
            layer._codes = pack_fields(coded.codes, _bits(layer.geometry.k))
            layer.__class__ = _LookedUp
        elif isinstance(layer, CodebookLinear) and has_kernel(layer):
            layer.__class__ = _Multiplied
        elif isinstance(layer, _CodebookConv) and (has_kernel(layer) or _multiplies_patches(layer)):
            layer.__class__ = _Convolved
        else:
            rest[name] = coded
    return rest


def _multiplies_patches(layer: _CodebookConv) -> bool:
    return layer.groups == 1 and multiplies(layer)


def _bits(k: int) -> int:
    """Of a code in a table: the kernel reads two to a byte, or one."""
    return 4 if k <= NIBBLE_CENTERS else 8


class _LookedUp(CodebookEmbedding):
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Embedding``."""
        vectors = torch.ops.vq_plugin.codebook_embedding(
            *(input.long(), self._codes, self.codebooks, self.scale),
            *(self.embedding_dim, self.geometry.group or 0),
        )
        return self._padded(vectors, input)


class _Multiplied(CodebookLinear):
    def forward(self, input: Tensor) -> Tensor:
        """As ``nn.Linear``."""
        output: Tensor = torch.ops.vq_plugin.codebook_linear(
            *(input, self._codes, self.codebooks, self.scale, self.bias, self.out_features),
            *(self.geometry.axis == "out", self.geometry.group or 0, PRECISIONS[self.precision]),
        )
        return output


class _Convolved(_CodebookConv):
    def forward(self, input: Tensor) -> Tensor:
        """As the float layer."""
        if not self._pads_alike:
            mode = "constant" if self.padding_mode == "zeros" else self.padding_mode
            input = functional.pad(input, self._pad_widths, mode=mode)
        alone = input.dim() == len(self.stride) + 1
        operands = (
            *(input.unsqueeze(0) if alone else input, self._codes, self.codebooks, self.scale),
            *(self.bias, self.out_channels, self.kernel_size, self.stride, self._sides),
            self.dilation,
        )
        precision, cut = PRECISIONS[self.precision], self.geometry
        operators = torch.ops.vq_plugin
        output: Tensor = (
            operators.codebook_conv(*operands, self.groups, precision)
            if self._by_position
            else operators.codebook_flat_conv(
                *operands, cut.axis == "out", cut.group or 0, precision
            )
        )
        return output.squeeze(0) if alone else output
