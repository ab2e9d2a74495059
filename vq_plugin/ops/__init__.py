"""How codebook layers are computed: operators of torch, with native kernels on the CPU."""

from vq_plugin.ops.library import (
    Precision,
    codebook_linear,
    dequantize_codebook,
    pack_codes,
    unpack_codes,
)
from vq_plugin.ops.native import isa, isas, native, use_isa

__all__ = [
    "Precision",
    "codebook_linear",
    "dequantize_codebook",
    "isa",
    "isas",
    "native",
    "pack_codes",
    "unpack_codes",
    "use_isa",
]
