"""How codebook layers are computed: operators of torch, with native kernels on the CPU."""

from vq_plugin.ops.convolution import codebook_conv
from vq_plugin.ops.library import (
    KERNEL_CENTERS,
    PRECISIONS,
    Precision,
    codebook_linear,
    dequantize_codebook,
    pack_codes,
    packs,
    unpack_codes,
)
from vq_plugin.ops.native import isa, isas, native, use_isa, warn_without_native
from vq_plugin.ops.recording import compiled_by_codes, recording, stacked, tracing, transforming

__all__ = [
    "KERNEL_CENTERS",
    "PRECISIONS",
    "Precision",
    "codebook_conv",
    "codebook_linear",
    "compiled_by_codes",
    "dequantize_codebook",
    "isa",
    "isas",
    "native",
    "pack_codes",
    "packs",
    "recording",
    "stacked",
    "tracing",
    "transforming",
    "unpack_codes",
    "use_isa",
    "warn_without_native",
]
