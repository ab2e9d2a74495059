"""How centers and row scales are rounded to what a file holds, int8 centers as integers, too.

A codebook of int8 centers has one power of two as its step, as the blocks of MXINT8 have (OCP
Microscaling Formats 1.0, 2023). Integers of seven bits times a power of two are exact in float16,
bfloat16 and float32 alike, so layers, kernels and hosts meet ordinary float16 codebooks.
"""

from __future__ import annotations

import torch
from torch import Tensor

from vq_plugin.coding.scales import EIGHTHS, LEAST_OCTAVE, MOST_OCTAVE, encode_scales
from vq_plugin.format.weights import LEAST_EXPONENT, MOST_EXPONENT, MOST_STEPS
from vq_plugin.schemes import CodebookDtype


def round_centers(codebooks: Tensor, dtype: CodebookDtype) -> Tensor:
    """Centers rounded to what a file holds; rounding them again changes nothing.

    Args:
        codebooks: Floats, ``(..., k, dim)``; one codebook in the last two dimensions.
        dtype: The scheme's ``codebook_dtype``. ``"int8"`` makes them multiples of a step: the
            smallest power of two, at least 2^-24, of which none needs more than 127.

    Returns:
        Same shape, in the dtype; int8 centers in float16, which holds them exactly. Centers
        beyond its range become infinite.

    Example:
        >>> round_centers(torch.tensor([[0.5, -0.3], [0.1, 0.0]]), "int8").tolist()
        [[0.5, -0.296875], [0.1015625, 0.0]]
    """
    if dtype != "int8":
        return codebooks.to(getattr(torch, dtype))
    wide = codebooks.float()
    steps = _steps(_exponents(wide))
    # A file has no -0.
    return ((wide / steps).round() * steps + 0.0).half()


def to_int8(codebooks: Tensor) -> tuple[Tensor, Tensor]:
    """Rounded centers as integers and the exponents of their steps.

    Returns:
        ``integers``, int8, ``(..., k, dim)``, in [-127, 127], and ``exponents``, int8, ``(...)``,
        in [-24, 9]. ``integers · 2^exponents`` are the centers that :func:`round_centers` gives.

    Raises:
        ValueError: If a center is NaN, infinite, or beyond the range of float16.

    Example:
        >>> integers, exponents = to_int8(torch.tensor([[0.5, -0.3], [0.1, 0.0]]))
        >>> integers.tolist(), exponents.tolist()
        ([[64, -38], [13, 0]], -7)
    """
    rounded = round_centers(codebooks, "int8").float()
    if not bool(rounded.isfinite().all()):
        raise ValueError("a center is NaN, infinite or beyond 65024, which int8 cannot keep")
    exponents = _exponents(rounded)
    return (rounded / _steps(exponents)).to(torch.int8), exponents.to(torch.int8)


def round_scales(scale: Tensor) -> Tensor:
    """Row scales at the nearest power of the eighth root of two, of which files keep few bits.

    Args:
        scale: Float32, ``(rows,)``, 0 or above.

    Returns:
        Float32, ``(rows,)``, off by 4.5 % at most; those beyond float16's normal numbers as they
        are. Rounding them again, or to float16, changes nothing.

    Example:
        >>> round_scales(torch.tensor([0.0, 1.0, 1.06, 100.0])).tolist()
        [0.0, 1.0, 1.0908203125, 98.6875]
    """
    part, octave = torch.frexp(scale)
    # Compared with them all: logarithms are rounded one way here and another there.
    bounds = torch.tensor([2 ** ((2 * at + 1) / 16 - 1) for at in range(len(EIGHTHS))])
    eighth = (part.unsqueeze(-1) >= bounds).sum(-1)
    found = torch.tensor([*EIGHTHS, 2 * EIGHTHS[0]]) / EIGHTHS[0]
    rounded = torch.ldexp(found[eighth], octave - 1)
    normal = (octave > LEAST_OCTAVE) & (rounded < 2.0 ** (MOST_OCTAVE + 1)) & (scale > 0)
    return torch.where(normal, rounded, scale)


def stored_scales(scale: Tensor) -> Tensor:
    """The tensor of a file for row scales, ``(rows,)``.

    Returns:
        uint8, coded, where :func:`round_scales` made them, in float16, and that is smaller;
        otherwise as they are.

    Example:
        >>> stored_scales(torch.ones(1000, dtype=torch.float16)).nbytes
        16
        >>> stored_scales(torch.full((1000,), 1.01, dtype=torch.float16)).nbytes
        2000
    """
    if scale.dtype != torch.float16:
        return scale
    data = encode_scales(scale.detach().cpu().numpy())
    return scale if data is None else torch.from_numpy(data)


def _exponents(codebooks: Tensor) -> Tensor:
    """Of every codebook's step; one more than the most where float16 cannot hold the centers."""
    largest = codebooks.abs().amax((-2, -1))
    # Compared with them all: logarithms are rounded one way here and another there. From half a
    # step above 127 on a center is rounded to 128.
    bounds = (MOST_STEPS + 0.5) * _powers(largest.device)[:-1]
    return (largest.unsqueeze(-1) >= bounds).sum(-1) + LEAST_EXPONENT


def _steps(exponents: Tensor) -> Tensor:
    return _powers(exponents.device)[exponents - LEAST_EXPONENT][..., None, None]


def _powers(device: torch.device) -> Tensor:
    # Not every machine's exp2 is exact.
    exponents = range(LEAST_EXPONENT, MOST_EXPONENT + 2)
    return torch.tensor([2.0**exponent for exponent in exponents], device=device)
