"""What of a model is not of a codebook: biases, norms and layers left as they are."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor, nn

from vq_plugin.checkpoint.summed import summed_biases
from vq_plugin.checkpoint.weights import saved_weights
from vq_plugin.format.header import LEAST_REST_EXPONENT, MOST_REST_EXPONENT
from vq_plugin.format.weights import MOST_STEPS

Rest = Literal["float16", "int8"]

_WIDE = (torch.float32, torch.float64)


class Kept(NamedTuple):
    """A tensor as a file keeps it.

    Attributes:
        tensor: In the dtype of the file.
        exponent: Where integers stand for floats, of the power of two that is their step.
    """

    tensor: Tensor
    exponent: int | None = None

    @property
    def values(self) -> Tensor:
        """What it stands for."""
        if self.exponent is None:
            return self.tensor
        return self.tensor.float() * 2.0**self.exponent


def check_rest(rest: str | None) -> None:
    """Raises a ValueError if there is no such way to store the rest."""
    if rest not in (None, *get_args(Rest)):
        raise ValueError(f"rest={rest!r} is neither None nor 'float16' nor 'int8'")


def rest_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the ``state_dict`` that are not of a codebook, by name."""
    own = {key for each in saved_weights(model) for key in each.keys}
    return {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and key not in own
    }


def is_numbers(value: Tensor, rest: Rest | None) -> bool:
    """Whether a file keeps a tensor of the ``state_dict`` as whole numbers of a step.

    Example:
        >>> is_numbers(nn.Parameter(torch.ones(3)), "int8"), is_numbers(torch.ones(3), "int8")
        (True, False)
    """
    thin = isinstance(value, nn.Parameter) and value.dim() == 1
    return rest == "int8" and thin and value.dtype in _WIDE


def stored_rest(value: Tensor, rest: Rest | None) -> Kept:
    """A tensor of the ``state_dict`` as a file keeps it; rounded from float32 or float64 alone.

    ``"float16"`` rounds what is in its range. ``"int8"`` rounds parameters of one dimension, such
    as biases, to whole numbers of up to 127 times a power of two, hence by at most 1/127 of the
    largest; and all else as ``"float16"``: statistics of batch norms need their small values.
    Numbers that are all even are halved, and their step is doubled: small ones take fewer bits.

    Example:
        >>> stored_rest(torch.tensor([0.1, 7.0]), "float16").tensor.nbytes
        4
        >>> stored_rest(torch.tensor([0.1, 7e7]), "float16").tensor.nbytes
        8
        >>> stored_rest(nn.Parameter(torch.tensor([0.1, 1.0])), "int8").values.tolist()
        [0.09375, 1.0]
        >>> stored_rest(nn.Parameter(torch.tensor([0.25, 1.0])), "int8").tensor.tolist()
        [1, 4]
    """
    kept = value.detach()
    if rest is None or kept.dtype not in _WIDE:
        return Kept(kept)
    if is_numbers(value, rest):
        exponent = _exponent(float(kept.abs().max()) if kept.numel() else 0.0)
        if exponent is not None:
            return _halved((kept.double() * 2.0**-exponent).round().to(torch.int8), exponent)
    half = kept.half()
    return Kept(kept if bool((half.isinf() & kept.isfinite()).any()) else half)


def _exponent(largest: float) -> int | None:
    """Of the smallest step of which ``largest`` needs no more than 127; ``None`` if out of range.

    Of one that float32 has, and all of whose multiples it has.
    """
    if not math.isfinite(largest):
        return None
    part, power = math.frexp(largest)
    # From half a step above 127 on it is rounded to 128.
    exponent = power - (6 if part * 128 >= MOST_STEPS + 0.5 else 7)
    exponent = max(exponent, LEAST_REST_EXPONENT)
    return exponent if exponent <= MOST_REST_EXPONENT else None


def _halved(numbers: Tensor, exponent: int) -> Kept:
    """Numbers that are not all even, unless there are none but zeros."""
    while exponent < MOST_REST_EXPONENT and bool(numbers.any()) and not bool((numbers % 2).any()):
        numbers, exponent = numbers // 2, exponent + 1
    return Kept(numbers, exponent)


def kept_rest(model: nn.Module, rest: Rest | None) -> Callable[[Tensor], Kept]:
    """How a file keeps each tensor of the ``state_dict``, what it is of considered.

    As :func:`stored_rest`, but that where something is rounded at all recurrent layers keep the sum
    of their two biases as one, beside zeros, which take nothing.
    """
    sums = {} if rest is None else summed_biases(model)
    kept = {
        key: stored_rest(value, rest)
        if bool(value.any())
        else Kept(torch.zeros_like(value, dtype=torch.int8), LEAST_REST_EXPONENT)
        for key, value in sums.items()
        if value.dtype in _WIDE
    }
    return lambda value: kept.get(id(value)) or stored_rest(value, rest)


def round_rest(model: nn.Module, rest: Rest | None) -> nn.Module:
    """Gives a model, in place, the values that it has once it is saved and loaded; returns it."""
    kept = kept_rest(model, rest)
    with torch.no_grad():
        for value in rest_tensors(model).values():
            stored = kept(value)
            if stored.tensor is not value and stored.tensor.data_ptr() != value.data_ptr():
                value.copy_(stored.values)
    return model
