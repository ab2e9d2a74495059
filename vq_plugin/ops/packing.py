"""The layout of 4-bit codes, in pure torch; csrc/packing.h says the same for the kernels."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

LANES = 16
NIBBLES = 8
NIBBLE_CENTERS = 16


def packed_shape(
    stages: int, rows: int, subspaces: int, along_out: bool
) -> tuple[int, int, int, int]:
    """Shape of packed codes: blocks of 16 rows and 8 subspaces."""
    row_blocks, column_blocks = -(-rows // LANES), -(-subspaces // NIBBLES)
    if along_out:
        return stages, column_blocks, row_blocks, LANES
    return stages, row_blocks, column_blocks, LANES


def pack(codes: Tensor, along_out: bool) -> Tensor:
    """``vq::pack_codes``: see :func:`vq_plugin.ops.pack_codes`."""
    stages, rows, subspaces = codes.shape
    padded = functional.pad(codes, (0, -subspaces % NIBBLES, 0, -rows % LANES))
    row_blocks, column_blocks = padded.shape[1] // LANES, padded.shape[2] // NIBBLES
    blocks = padded.reshape(stages, row_blocks, LANES, column_blocks, NIBBLES)
    shifts = 4 * torch.arange(NIBBLES, dtype=torch.int32, device=codes.device)
    # Nibbles do not overlap: their sum is their union, also where it wraps to a negative number.
    dwords = (blocks.to(torch.int32) << shifts).sum(4, dtype=torch.int32)
    order = (0, 3, 1, 2) if along_out else (0, 1, 3, 2)
    return dwords.permute(order).contiguous()


def unpack(packed: Tensor, rows: int, subspaces: int, along_out: bool) -> Tensor:
    """``vq::unpack_codes``: see :func:`vq_plugin.ops.unpack_codes`."""
    blocks = packed_shape(1, rows, subspaces, along_out)[1:]
    if packed.dim() != 4 or tuple(packed.shape[1:]) != blocks:
        raise RuntimeError(
            f"{tuple(packed.shape)} are not the packed codes of {rows} x {subspaces}"
        )
    stages = packed.shape[0]
    shifts = 4 * torch.arange(NIBBLES, dtype=torch.int32, device=packed.device)
    nibbles = ((packed.unsqueeze(4) >> shifts) & 15).to(torch.uint8)
    order = (0, 2, 3, 1, 4) if along_out else (0, 1, 3, 2, 4)
    codes = nibbles.permute(order).reshape(
        stages, -(-rows // LANES) * LANES, -(-subspaces // NIBBLES) * NIBBLES
    )
    return codes[:, :rows, :subspaces].contiguous()
