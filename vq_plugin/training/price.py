"""What a bit shall cost: the price that leaves a loss a little within its limit."""

from __future__ import annotations

import math
from collections.abc import Mapping

# Of a first training: what a bit costs, times the number of weights.
_EACH = 0.5
# What all bits that are left in the end cost together, in units of the loss: 0.06 to 0.09 in files
# of LeNet-5 that are 500 to 1500 times smaller.
_ALL = 0.07
# Where losses on one side of the limit only are known.
_FACTOR = 3.0


def first_price(weights: int, room: float = math.inf) -> float:
    """The price of a bit of a first training.

    Args:
        weights: How many are coded.
        room: Bits that a target has for them.

    Example:
        >>> first_price(1_000_000), first_price(1_000_000, room=28_000)
        (5e-07, 2.5e-06)
    """
    return max(_EACH / weights, _ALL / room)


def next_price(lost: Mapping[float, float], limit: float) -> float:
    """The next price of a bit, from what the trainings so far have lost at theirs.

    Between one that holds and one that does not, losses are interpolated on the logarithm of the
    price, else it changes by a factor; for a loss a little within the limit.

    Args:
        lost: The loss of each price so far, at least one; infinity where a training failed.
        limit: The largest loss that is accepted.

    Example:
        >>> next_price({1e-6: 0.0}, limit=0.01), round(next_price({1e-6: 0.0, 4e-6: 0.02}, 0.01), 9)
        (3e-06, 1.932e-06)
    """
    below = max((p for p, loss in lost.items() if loss <= limit), default=None)
    above = min((p for p, loss in lost.items() if loss > limit), default=None)
    if below is None or above is None or below > above:
        return _FACTOR * below if above is None and below is not None else min(lost) / _FACTOR
    share = (0.95 * limit - lost[below]) / (lost[above] - lost[below])
    share = min(max(share, 0.15), 0.85)
    return math.exp((1 - share) * math.log(below) + share * math.log(above))
