"""Codes of any width as bytes: 3-bit codes take 3 bits."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from vq_plugin.ops import fit as native
from vq_plugin.schemes import code_bits, code_dtype

# Whole bytes at every width; the bits of one run take 1 MB per bit of a code.
_RUN = 1 << 20


def packed_size(count: int, k: int) -> int:
    """Bytes of ``count`` codes into ``k`` centers.

    Example:
        >>> packed_size(8, 8)
        3
    """
    return -(-count * code_bits(k) // 8)


def pack(codes: Tensor, k: int) -> Tensor:
    """Packs codes one after the other, the lowest bit first, without gaps.

    Args:
        codes: Integers in ``[0, k)``, any shape.
        k: Centers per codebook.

    Returns:
        Uint8, ``(packed_size(codes.numel(), k),)``; the last byte is filled with zeros.

    Example:
        >>> pack(torch.tensor([1, 2, 3, 7]), 8).tolist()
        [209, 14]
    """
    bits = code_bits(k)
    if 0 < bits <= 8 and native.native_fits():
        return native.pack_bits(codes.detach().cpu().flatten().to(torch.uint8), bits)
    flat = codes.detach().cpu().flatten().numpy()
    if bits == 8:
        return torch.from_numpy(flat.astype(np.uint8))
    packed = [
        np.packbits((run[:, None] >> np.arange(bits)).astype(np.uint8) & 1, bitorder="little")
        for run in (flat[i : i + _RUN].astype(np.int32) for i in range(0, len(flat), _RUN))
    ]
    return torch.from_numpy(np.concatenate([np.zeros(0, np.uint8), *packed]))


def unpack(packed: Tensor, count: int, k: int) -> Tensor:
    """Undoes :func:`pack`.

    Args:
        packed: Uint8, ``(packed_size(count, k),)``.
        count: Number of codes.
        k: Centers per codebook.

    Returns:
        Codes, ``(count,)``, in the smallest integer dtype that holds them.

    Raises:
        ValueError: If the size does not fit ``count`` or a code is not below ``k``.
    """
    bits = code_bits(k)
    if packed.numel() != packed_size(count, k):
        raise ValueError(f"{packed.numel()} bytes cannot hold {count} codes of {bits} bits")
    if 0 < bits <= 8 and native.native_fits():
        codes = native.unpack_bits(packed.cpu().contiguous(), count, bits)
    else:
        codes = _unpack(packed, count, bits)
    if count and int(codes.max()) >= k:
        raise ValueError(f"code {int(codes.max())} is outside the codebook of {k} centers")
    return codes


def _unpack(packed: Tensor, count: int, bits: int) -> Tensor:
    codes = torch.zeros(count, dtype=code_dtype(1 << bits))
    data = packed.numpy()
    weights = 1 << np.arange(bits)
    step = _RUN * bits // 8
    for run, start in enumerate(range(0, len(data) if bits else 0, step or 1)):
        count_here = min(_RUN, count - run * _RUN)
        raw = np.unpackbits(
            data[start : start + step], count=count_here * bits, bitorder="little"
        ).reshape(-1, bits)
        values = raw.astype(np.int32) @ weights
        codes[run * _RUN : run * _RUN + count_here] = torch.from_numpy(values)
    return codes
