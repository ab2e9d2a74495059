"""Codebook layers, and which float layer each one replaces."""

from __future__ import annotations

from torch import nn

from vq_plugin.nn.conv import CodebookConv1d, CodebookConv2d, CodebookConv3d
from vq_plugin.nn.embedding import CodebookEmbedding
from vq_plugin.nn.layer import CodebookLayer
from vq_plugin.nn.linear import CodebookLinear

CODEBOOK_LAYERS: dict[type[nn.Module], type[CodebookLayer]] = {
    cls.float_type: cls
    for cls in (CodebookLinear, CodebookConv1d, CodebookConv2d, CodebookConv3d, CodebookEmbedding)
}

LAYER_TYPES: dict[str, type[nn.Module]] = {cls.__name__: cls for cls in CODEBOOK_LAYERS}


def codebook_type(module: nn.Module) -> type[CodebookLayer] | None:
    """The codebook layer that can replace ``module``, or ``None``.

    A subclass is replaced like its base unless it has a forward pass of its own.
    """
    for base, layer in CODEBOOK_LAYERS.items():
        if isinstance(module, base) and type(module).forward is base.forward:
            return layer
    return None


__all__ = [
    "CODEBOOK_LAYERS",
    "LAYER_TYPES",
    "CodebookConv1d",
    "CodebookConv2d",
    "CodebookConv3d",
    "CodebookEmbedding",
    "CodebookLayer",
    "CodebookLinear",
    "codebook_type",
]
