"""Codes of any width as bytes: 3-bit codes take 3 bits."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding import plain
from vq_plugin.coding.ans import coder


def code_bits(k: int) -> int:
    """Bits of one fixed-length code into ``k`` centers.

    Example:
        >>> [code_bits(k) for k in (1, 2, 5, 8, 256)]
        [0, 1, 3, 3, 8]
    """
    return (k - 1).bit_length()


def code_dtype(k: int) -> np.dtype[Any]:
    """The smallest integer dtype that torch, too, computes with and that holds ``k - 1``."""
    return np.dtype(np.uint8 if k <= 256 else np.int16 if k <= 1 << 15 else np.int32)


def packed_size(count: int, k: int) -> int:
    """Bytes of ``count`` codes into ``k`` centers.

    Example:
        >>> packed_size(8, 8)
        3
    """
    return -(-count * code_bits(k) // 8)


def pack(codes: NDArray[Any], k: int) -> NDArray[np.uint8]:
    """Packs codes in ``[0, k)`` one after the other, the lowest bit first, without gaps.

    Uint8, ``(packed_size(codes.size, k),)``; the last byte is filled with zeros.

    Example:
        >>> pack(np.array([1, 2, 3, 7]), 8).tolist()
        [209, 14]
    """
    bits = code_bits(k)
    packed = np.empty(packed_size(codes.size, k), np.uint8)
    flat = np.ascontiguousarray(codes.reshape(-1), code_dtype(k))
    if bits:
        _packer(bits).pack_bits(flat, bits, packed)
    return packed


def unpack(packed: NDArray[np.uint8], count: int, k: int) -> NDArray[Any]:
    """Undoes :func:`pack`: ``(count,)``, in the smallest integer dtype that holds the codes.

    ``ValueError`` if the size does not fit ``count`` or a code is not below ``k``.
    """
    bits = code_bits(k)
    if packed.size != packed_size(count, k):
        raise ValueError(f"{packed.size} bytes cannot hold {count} codes of {bits} bits")
    codes = np.zeros(count, code_dtype(1 << bits))
    if bits:
        _packer(bits).unpack_bits(np.ascontiguousarray(packed), bits, codes)
    if count and int(codes.max()) >= k:
        raise ValueError(f"code {int(codes.max())} is outside the codebook of {k} centers")
    return codes


def _packer(bits: int) -> Any:
    # The extension packs bytes.
    return coder() if bits <= 8 else plain
