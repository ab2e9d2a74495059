"""Axes of charts: from values to places, and where the ticks go."""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

# Five labels still fit side by side on a phone, if they keep this part of the axis apart.
_MOST_TICKS = 5
_GAP = 0.17
_DIGITS = (tuple(range(1, 10)), (1, 1.5, 2, 3, 5, 7), (1, 2, 5), (1, 3))


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


class Tick(NamedTuple):
    """A mark on an axis: its place, and what stands there."""

    at: float
    label: str


def log_axis(values: list[float], start: float, end: float) -> Axis:
    """A logarithmic axis with some air around positive values."""
    low, high = min(values), max(values)
    air = max((high / low) ** 0.06, 1.05)
    return Axis(low / air, high * air, start, end, log=True)


def ticks(axis: Axis, label: Callable[[float], str]) -> list[Tick]:
    """At most five marks at round values."""
    return [Tick(axis.at(value), label(value)) for value in _round_values(axis)]


def _round_values(axis: Axis) -> list[float]:
    if not axis.log:
        return _linear_values(axis.low, axis.high)
    span = math.log(axis.high / axis.low)
    decades = range(math.floor(math.log10(axis.low)), math.floor(math.log10(axis.high)) + 1)
    choices = [
        [digit * 10.0**exponent for exponent in decades for digit in digits] for digits in _DIGITS
    ]
    choices = [[value for value in values if axis.low <= value <= axis.high] for values in choices]
    fitting = [
        values
        for values in choices
        if 2 <= len(values) <= _MOST_TICKS and _smallest_step(values) >= _GAP * span
    ]
    if fitting:
        return max(fitting, key=len)
    powers = _powers_of_ten(axis)
    return powers if len(powers) >= 2 else _linear_values(axis.low, axis.high)


def _smallest_step(values: list[float]) -> float:
    return min(math.log(after / before) for before, after in pairwise(values))


def _powers_of_ten(axis: Axis) -> list[float]:
    first = math.ceil(math.log10(axis.low) - 1e-9)
    last = math.floor(math.log10(axis.high) + 1e-9)
    step = max(1, math.ceil((last - first + 1) / _MOST_TICKS))
    return [10.0**exponent for exponent in range(first, last + 1, step)]


def _linear_values(low: float, high: float) -> list[float]:
    rough = (high - low) / (_MOST_TICKS - 1)
    unit = 10.0 ** math.floor(math.log10(rough))
    step = next(unit * s for s in (1, 2, 2.5, 5, 10) if unit * s >= rough * (1 - 1e-9))
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [step * count for count in range(first, last + 1)]
