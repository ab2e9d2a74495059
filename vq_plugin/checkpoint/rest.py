"""What of a model is not of a codebook: biases, norms and layers left as they are."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn

from vq_plugin.checkpoint.weights import saved_weights

Rest = Literal["float16"]


def check_rest(rest: str | None) -> None:
    """Raises a ValueError if there is no such way to store the rest."""
    if rest not in (None, "float16"):
        raise ValueError(f"rest={rest!r} is neither None nor 'float16'")


def rest_tensors(model: nn.Module) -> dict[str, Tensor]:
    """The tensors of the ``state_dict`` that are not of a codebook, by name."""
    own = {key for each in saved_weights(model) for key in each.keys}
    return {
        key: value
        for key, value in model.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and key not in own
    }


def stored_rest(value: Tensor, rest: Rest | None) -> Tensor:
    """A tensor as a file keeps it: with ``"float16"`` rounded from float32 or float64, if in range.

    Example:
        >>> stored_rest(torch.tensor([0.1, 7.0]), "float16").nbytes
        4
        >>> stored_rest(torch.tensor([0.1, 7e7]), "float16").nbytes
        8
    """
    if rest is None or value.dtype not in (torch.float32, torch.float64):
        return value
    half = value.half()
    return value if bool((half.isinf() & value.isfinite()).any()) else half


def round_rest(model: nn.Module, rest: Rest | None) -> nn.Module:
    """Gives a model, in place, the values that it has once it is saved and loaded; returns it."""
    with torch.no_grad():
        for value in rest_tensors(model).values():
            stored = stored_rest(value, rest)
            if stored is not value:
                value.copy_(stored)
    return model
