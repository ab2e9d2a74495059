"""Numbers that functions are given, checked before any work is done, in the same words."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any, TypeGuard

# Letters of a value that a message shows.
_MOST_SHOWN = 70


def brief(value: object) -> str:
    """A value in a message: on one line, and cut where it is long, as models and batches are.

    Example:
        >>> brief("km(k=16)"), brief(list(range(100)))
        ("'km(k=16)'", '[0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 16, 17, 18,...')
    """
    text = " ".join(repr(value).split())
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def as_number(value: object) -> Any:
    """A number of another library, such as NumPy's, as Python's own; all else as it is.

    Texts, JSON and torch's generators know no others.

    Example:
        >>> import numpy as np
        >>> as_number(np.int64(3)), as_number(np.float64(0.5)), as_number("3")
        (3, 0.5, '3')
    """
    if isinstance(value, bool) or type(value) in (int, float):
        return value
    if isinstance(value, Integral):
        return int(value)
    return float(value) if isinstance(value, Real) else value


def is_number(value: object) -> TypeGuard[int | float]:
    """Whether a value is a number of Python's; true and false are none.

    Example:
        >>> is_number(0.5), is_number(3), is_number(True), is_number("3")
        (True, True, False, False)
    """
    return isinstance(value, int | float) and not isinstance(value, bool)


def check_whole(name: str, value: object) -> int:
    """An argument as a number of Python's; ``TypeError`` unless it is a whole number.

    Example:
        >>> check_whole("epochs", 1.5)
        Traceback (most recent call last):
        TypeError: epochs must be a whole number, got 1.5
    """
    number = as_number(value)
    if not isinstance(number, int) or isinstance(number, bool):
        raise TypeError(f"{name} must be a whole number, got {brief(value)}")
    return number


def check_flag(name: str, value: object) -> bool:
    """An argument as Python's own; ``TypeError`` unless it is true or false, as no text is.

    Example:
        >>> check_flag("fold", "no")
        Traceback (most recent call last):
        TypeError: fold must be True or False, got 'no'
    """
    if value not in (True, False):
        raise TypeError(f"{name} must be True or False, got {brief(value)}")
    return bool(value)


def check_positive(name: str, value: object) -> None:
    """``TypeError`` unless an argument is a number, ``ValueError`` unless it is above 0."""
    if not _number(name, value) > 0:
        raise ValueError(f"{name} must be above 0, got {brief(value)}")


def check_at_least(name: str, value: object, least: float) -> None:
    """``TypeError`` unless an argument is a number; ``ValueError`` below ``least`` or infinite."""
    if not least <= _number(name, value) < math.inf:
        raise ValueError(f"{name} must be a finite number of at least {least}, got {brief(value)}")


def _number(name: str, value: object) -> float:
    if not isinstance(value, Real) or isinstance(value, bool):
        raise TypeError(f"{name} must be a number, got {brief(value)}")
    return float(value)
