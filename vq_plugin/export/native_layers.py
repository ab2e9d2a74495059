"""Which layers an operator library runs from their codes."""

from __future__ import annotations

from typing import Literal, get_args

import torch

from vq_plugin.nn import CodebookEmbedding, CodebookLayer, CodebookLinear
from vq_plugin.nn.conv import _CodebookConv
from vq_plugin.ops import KERNEL_CENTERS

#: What codebook layers become in a file: standard operators, or one of ours each.
Operator = Literal["portable", "native"]


def check_operator(operator: str) -> None:
    """``ValueError`` for what is no :data:`Operator`."""
    if operator not in get_args(Operator):
        known = " or ".join(map(repr, get_args(Operator)))
        raise ValueError(f"operator {operator!r}: it can be {known}")


def has_kernel(layer: CodebookLayer) -> bool:
    """Whether a layer is one node, whose operator the libraries have.

    Linear layers, 1x1 convolutions, convolutions of channels and embeddings in float32, of up to
    256 centers; 16 for convolutions of channels.
    """
    if isinstance(layer, _CodebookConv) and not layer._pointwise:
        return _kernels_read(layer) and layer._by_position
    if type(layer) is CodebookEmbedding:
        return _kernels_read(layer) and layer.geometry.axis == "in"
    return isinstance(layer, CodebookLinear | _CodebookConv) and multiplies(layer)


def multiplies(layer: CodebookLayer) -> bool:
    """Whether there is a product with a layer's weight in its 2-D view, ``(out, in)``."""
    cut = layer.geometry
    single = (cut.stages, cut.books, cut.dim) == (1, 1, 1)
    groups = cut.groups == 1 or (single and cut.axis == "in")
    return _kernels_read(layer) and cut.axis in ("in", "out") and groups


def _kernels_read(layer: CodebookLayer) -> bool:
    return layer.codebooks.dtype == torch.float32 and layer.geometry.k <= KERNEL_CENTERS
