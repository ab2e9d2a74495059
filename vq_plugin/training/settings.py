"""What all trainings are told, checked before any work is done."""

from __future__ import annotations

import math
from numbers import Integral, Real

from torch import nn


def check_settings(
    *, epochs: object, lr: object, seed: object, teacher: object, loss: object
) -> None:
    """Checks what ``finetune``, ``prune``, ``prune_factors`` and ``learn`` are given alike.

    Raises:
        TypeError: If ``epochs`` or ``seed`` is no whole number, ``lr`` no number, ``teacher`` no
            module, or ``loss`` cannot be called.
        ValueError: If ``lr`` is negative or not finite.
    """
    for name, value in (("epochs", epochs), ("seed", seed)):
        check_whole(name, value)
    if not isinstance(lr, Real) or isinstance(lr, bool):
        raise TypeError(f"lr must be a number, got {lr!r}")
    if not 0 <= float(lr) < math.inf:
        raise ValueError(f"lr must be a finite number of at least 0, got {lr!r}")
    if teacher is not None and not isinstance(teacher, nn.Module):
        raise TypeError(f"teacher must be a float model, got {type(teacher).__name__}")
    if loss is not None and not callable(loss):
        raise TypeError(
            f"loss must be a function of outputs and targets, got {type(loss).__name__}"
        )


def check_whole(name: str, value: object) -> None:
    """Checks that an argument is a whole number.

    Raises:
        TypeError: If it is not.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise TypeError(f"{name} must be a whole number, got {value!r}")
