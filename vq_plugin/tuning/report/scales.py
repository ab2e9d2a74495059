"""Axes of charts: from values to places, and where the ticks go."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

# Five labels still fit side by side on a phone, if they keep this part of the axis apart.
_MOST_TICKS = 5
_GAP = 0.17
_DIGITS = (tuple(range(1, 10)), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,))
_STRIDES = (2, 3, 5, 8)


class Axis(NamedTuple):
    """Values from ``low`` to ``high``, and the pixels or percent from ``start`` to ``end``."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False  # equal steps are equal factors

    def at(self, value: float) -> float:
        """The place of a value, not beyond the ends."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(value)
        part = min(max((value - low) / (high - low), 0.0), 1.0)
        return round(self.start + part * (self.end - self.start), 2)

    def ticks(self) -> list[float]:
        """Two to five round values."""
        return (_decimal_values(self) if self.log else []) or _even_values(self.low, self.high)


def log_axis(values: list[float], start: float, end: float) -> Axis:
    """A logarithmic axis with some air around positive values."""
    low, high = min(values), max(values)
    air = max((high / low) ** 0.06, 1.05)
    return Axis(low / air, high * air, start, end, log=True)


def _decimal_values(axis: Axis) -> list[float]:
    """The most values of the same digits that keep apart, in every decade or every few."""
    decades = range(math.floor(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
    gap = (axis.high / axis.low) ** _GAP
    best: list[float] = []
    for digits, stride in [*((digits, 1) for digits in _DIGITS), *(((1,), s) for s in _STRIDES)]:
        values = [digit * 10.0**exponent for exponent in decades[::stride] for digit in digits]
        values = [value for value in values if axis.low <= value <= axis.high]
        apart = all(after >= gap * before for before, after in pairwise(values))
        if apart and max(len(best), 1) < len(values) <= _MOST_TICKS:
            best = values
    return best


def _even_values(low: float, high: float) -> list[float]:
    rough = (high - low) / (_MOST_TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * s for s in (1, 2, 2.5, 5, 10) if unit * s >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * count for count in range(first, last + 1)]
