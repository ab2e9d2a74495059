"""What a candidate is expected to do before it is fitted."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from vq_plugin.schemes import Geometry

# Squared errors of the best quantizers of 0, 1, ... bits of a Gaussian number (Max 1960,
# "Quantizing for minimum distortion").
_SCALAR = (1.0, 0.3634, 0.1175, 0.03454, 0.009497, 0.002499, 0.000642, 0.000163, 0.0000413)
# How fast what is known of one candidate says less of others: in factors of e of the error.
_REACH = 1.5
# What is known of other layers counts like so much of a candidate of the same layer.
_POOLED = 0.3


def expected_error(geometry: Geometry) -> float:
    """The squared error, over the squared size, that a weight of Gaussian numbers is left with.

    Between the bound that sub-vectors of infinite length reach and what scalar quantizers of as
    many bits do, less what the centers take of the few sub-vectors that they are trained on.

    Example:
        >>> import vq_plugin as vq
        >>> schemes = vq.KM(k=4), vq.PQ(k=16, dim=4, codebooks="tensor"), vq.KM(k=256)
        >>> [round(expected_error(s.geometry((512, 512))), 5) for s in schemes]
        [0.1175, 0.30134, 4e-05]
    """
    k = max(1, min(geometry.k, geometry.sub_vectors))
    bits = geometry.stages * math.log2(k) / geometry.dim
    whole = min(int(bits), len(_SCALAR) - 2)
    part = bits - whole
    if whole == 0:
        scalar = 1 - part * (1 - _SCALAR[1])
    else:
        scalar = _SCALAR[whole] * (_SCALAR[whole + 1] / _SCALAR[whole]) ** part
    trained = max(1 - k / geometry.sub_vectors, 1e-3)
    share = geometry.dim**-0.5
    error: float = 4 ** (-bits * (1 - share)) * scalar**share * trained
    return error


def forecast(
    expected: Sequence[Sequence[float]], known: Sequence[Mapping[int, float]]
) -> list[list[float]]:
    """Harms of all candidates of all layers, from expected ones and those of some that are known.

    By how much layers and schemes are off is a kernel regression on the logarithm of the ratio: of
    the nearest known candidates of a layer, and for a little of the same one in other layers.
    """
    ratios = [
        {
            choice: math.log(max(harm, 1e-300) / max(layer[choice], 1e-300))
            for choice, harm in found.items()
            if layer[choice] > 0
        }
        for layer, found in zip(expected, known, strict=True)
    ]
    pooled: dict[int, list[float]] = {}
    for found in ratios:
        for choice, ratio in found.items():
            pooled.setdefault(choice, []).append(ratio)
    every = [ratio for some in pooled.values() for ratio in some]
    typical = sum(every) / len(every) if every else 0.0
    harms = []
    for layer, found, measured in zip(expected, ratios, known, strict=True):
        row = []
        for choice, harm in enumerate(layer):
            if choice in measured or harm <= 0:
                row.append(measured.get(choice, harm))
                continue
            same = pooled.get(choice)
            total, weight = _POOLED * (sum(same) / len(same) if same else typical), _POOLED
            for other, ratio in found.items():
                near = math.exp(-abs(math.log(harm / layer[other])) / _REACH)
                total, weight = total + near * ratio, weight + near
            row.append(harm * math.exp(total / weight))
        harms.append(row)
    return harms
