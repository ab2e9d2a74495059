"""Codes side by side in bytes, row by row: a table's, of which single rows are asked for."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_BYTE = 8


def field_bits(k: int) -> int:
    """Bits that a code into ``k`` centers takes in a byte: 1, 2, 4, or 8, which is a code a byte.

    Example:
        >>> [field_bits(k) for k in (2, 3, 16, 17)]
        [1, 2, 4, 8]
    """
    return next((bits for bits in (1, 2, 4) if k <= 1 << bits), _BYTE)


def pack_fields(codes: Tensor, bits: int) -> Tensor:
    """Codes ``(..., subspaces)``, uint8 and below ``2**bits``, as bytes ``(..., bytes)``.

    The first code of a byte is in its lowest bits. With 8 bits, the codes as they are.

    Example:
        >>> pack_fields(torch.tensor([[1, 2, 3]], dtype=torch.uint8), bits=4)
        tensor([[33,  3]], dtype=torch.uint8)
    """
    if bits == _BYTE:
        return codes
    each = _BYTE // bits
    codes = functional.pad(codes, (0, -codes.shape[-1] % each))
    packed = codes[..., 0::each]
    for place in range(1, each):
        packed = packed | codes[..., place::each] << (place * bits)
    return packed


def unpack_fields(packed: Tensor, bits: int, subspaces: int) -> Tensor:
    """Undoes :func:`pack_fields`.

    Example:
        >>> unpack_fields(torch.tensor([[33, 3]], dtype=torch.uint8), bits=4, subspaces=3)
        tensor([[1, 2, 3]], dtype=torch.uint8)
    """
    if bits == _BYTE:
        return packed
    fields = [packed >> start & ((1 << bits) - 1) for start in range(0, _BYTE, bits)]
    return torch.stack(fields, -1).flatten(-2)[..., :subspaces]
