"""How large a weight is in a file."""

from __future__ import annotations

import math

from vq_plugin.codebook import CodebookWeight
from vq_plugin.coding.bits import packed_size
from vq_plugin.coding.entropy import coded_size
from vq_plugin.format.weights import may_be_coded


def file_nbytes(small: CodebookWeight) -> int:
    """Bytes of a weight in a file: codes, codebooks and scales, without its part of the header.

    Args:
        small: The weight.

    Returns:
        Of the codes the smaller of packed and coded, see
        :func:`vq_plugin.coding.entropy.coded_size`, which says how exactly.

    Example:
        >>> import torch, vq_plugin as vq
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> small = vq.quantize_weight(weight * (weight.abs() > 2), vq.KM(k=5, keep_zeros=True))
        >>> small.nbytes, file_nbytes(small) < small.nbytes / 5
        (1546, True)
    """
    codes, k = small.codes, small.k
    size = packed_size(codes.numel(), k)
    if may_be_coded(codes.numel(), math.prod(small.shape)):
        size = coded_size(codes.detach().cpu().numpy(), k)
    return size + small.geometry.table_bytes
