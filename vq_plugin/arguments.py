"""Numbers that functions are given, checked before any work is done, in the same words."""

from __future__ import annotations

import math
from numbers import Integral, Real


def check_whole(name: str, value: object) -> None:
    """``TypeError`` unless an argument is a whole number.

    Example:
        >>> check_whole("epochs", 1.5)
        Traceback (most recent call last):
        TypeError: epochs must be a whole number, got 1.5
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")


def check_positive(name: str, value: object) -> None:
    """``TypeError`` unless an argument is a number, ``ValueError`` unless it is above 0."""
    if not _number(name, value) > 0:
        raise ValueError(f"{name} must be above 0, got {value!r}")


def check_at_least(name: str, value: object, least: float) -> None:
    """``TypeError`` unless an argument is a number; ``ValueError`` below ``least`` or infinite."""
    if not least <= _number(name, value) < math.inf:
        raise ValueError(f"{name} must be a finite number of at least {least}, got {value!r}")


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {value!r}")
    return float(value)
