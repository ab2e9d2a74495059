"""How much of what errors of outputs seem to do together is believed: as one half of the data says.

Gradients are few, and of few sources. What errors make up for each other by some gradients, others
may well feel.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from vq_plugin.fit.output.across import Across, shrunk
from vq_plugin.schemes.scalar import LEAST_FELT

# Parts that are taken away from all that is off the diagonal (Ledoit & Wolf 2004).
_SHRINKAGES = (0.2, 0.5, 0.8)
# What a half has to leave of the harm, at most, that the other feels.
_MOST = 0.9


class Believed(NamedTuple):
    """What errors of two outputs do together, as far as it is believed.

    Attributes:
        together: For fits, ``(outputs, outputs)``.
        doubt: The part of what is off the diagonal that does not count when errors of such a fit
            are judged, which knew these gradients: what they do by others is more.
    """

    together: Tensor
    doubt: float


def believed(one: Tensor, two: Tensor) -> Believed | None:
    """What is believed of what errors of outputs do together, of the sum of two halves.

    Errors that make up for each other as one half has it are felt by the other; of the parts that
    may be believed, that one is which leaves it least.

    Args:
        one: Sum of ``g gᵀ`` over half of the gradients, float64 ``(outputs, outputs)``.
        two: Over the other half.

    Returns:
        The sum of the halves with less off its diagonal, float64, and what to doubt; ``None`` where
        the halves do not leave each other a tenth less than errors that know nothing of each other.

    Example:
        >>> felt = torch.tensor([[1.0, 0.9], [0.9, 1.0]], dtype=torch.float64)
        >>> believed(felt, felt).together
        tensor([[2.0000, 1.4400],
                [1.4400, 2.0000]], dtype=torch.float64)
        >>> believed(felt, felt * torch.tensor([[1.0, -1.0], [-1.0, 1.0]])) is None
        True
    """
    both = one + two
    size = both.diagonal()
    if not 0 < float(size.sum()) < math.inf:
        return None
    # As steps of equal harm leave errors, which are no longer where less than that is felt.
    scale = (size.mean() / size.clamp_min(LEAST_FELT * size.mean())).sqrt()

    def left(part: float, *felt: Tensor) -> float:
        halves = zip((one, two), felt, strict=True)
        return sum(_left(shrunk(half, part), other, scale) for half, other in halves) / 2

    others = {part: left(part, two, one) for part in _SHRINKAGES}
    best = min(others, key=others.__getitem__)
    if others[best] > _MOST:
        return None
    own = left(best, shrunk(one, best), shrunk(two, best))
    apart = left(best, shrunk(one, 1.0), shrunk(two, 1.0))
    doubt = (others[best] - own) / (apart - own) if apart > own else 0.0
    return Believed(shrunk(both, best), min(max(doubt, 0.0), 1.0))


def _left(together: Tensor, felt: Tensor, scale: Tensor) -> float:
    """The harm by ``felt`` of errors that make up for each other, over that of others.

    Errors ``E = U⁻¹·e``, of e as large everywhere, do ``tr(U⁻ᵀ·felt·U⁻¹)``.
    """
    across = Across.of(together, scale)
    whole = float((felt.diagonal() * scale.square()).sum())
    if across is None or not whole > 0:
        return 1.0
    scaled = (felt * scale.unsqueeze(1) * scale)[across.order][:, across.order]
    onward = across.onward.double().T
    # Not by a root of what is felt, which rounding may deny to few gradients.
    half = torch.linalg.solve_triangular(onward, scaled, upper=True)
    rest = torch.linalg.solve_triangular(onward, half.T, upper=True).trace()
    return float(rest) / whole
