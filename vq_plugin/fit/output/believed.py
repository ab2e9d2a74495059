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
from vq_plugin.fit.parallel import deterministic_map
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

    def tried(part: float) -> _Left:
        return _left(shrunk(one, part), shrunk(two, part), one, two, scale)

    each = deterministic_map(tried, _SHRINKAGES)
    left, best = min(zip(each, _SHRINKAGES, strict=True), key=lambda it: it[0].others)
    if left.others > _MOST:
        return None
    doubt = (left.others - left.own) / (left.apart - left.own) if left.apart > left.own else 0.0
    return Believed(shrunk(both, best), min(max(doubt, 0.0), 1.0))


class _Left(NamedTuple):
    """What is left of the harm by one half of errors that make up for each other by the other.

    ``own`` is what is left by the half that was asked, ``apart`` by that one where what errors do
    together does not count.
    """

    others: float
    own: float
    apart: float


def _left(asked_one: Tensor, asked_two: Tensor, one: Tensor, two: Tensor, scale: Tensor) -> _Left:
    """Of errors that make up for each other as one half has it, or the other, less a part."""
    first, second = _errors(asked_one, scale), _errors(asked_two, scale)
    others = _harm(first, two, scale) + _harm(second, one, scale)
    own = _harm(first, asked_one, scale) + _harm(second, asked_two, scale)
    apart = _harm(first, shrunk(one, 1.0), scale) + _harm(second, shrunk(two, 1.0), scale)
    return _Left(others / 2, own / 2, apart / 2)


def _errors(together: Tensor, scale: Tensor) -> Tensor | None:
    """Second moments of errors that make up for each other; ``None`` of those that do not.

    Of ``E = U⁻¹·e`` with e as large everywhere, times the scales: ``U⁻¹·U⁻ᵀ``.
    """
    across = Across.of(together, scale)
    if across is None:
        return None
    # What LAPACK inverts is (VᵀV)⁻¹ of an upper V, here of outputs from the last to the first.
    upper = across.onward.double().flip(0, 1)
    inverse = torch.cholesky_inverse(upper, upper=True).flip(0, 1)
    back = across.order.argsort()
    return inverse[back][:, back] * scale.unsqueeze(1) * scale


def _harm(errors: Tensor | None, felt: Tensor, scale: Tensor) -> float:
    """The harm by ``felt`` of errors, over that of errors that know nothing of each other."""
    whole = float((felt.diagonal() * scale.square()).sum())
    if errors is None or not whole > 0:
        return 1.0
    return float((felt * errors).sum()) / whole
