"""Fits and checks of single weights whose errors name the slot."""

from __future__ import annotations

from torch import Tensor
from torch.nn.parameter import is_lazy

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.weight import check_weight, quantize_weight
from vq_plugin.nn import Slot
from vq_plugin.nn.slots import shown
from vq_plugin.schemes import Scheme


def fit_named(
    name: str, weight: Tensor, scheme: Scheme, *, moments: Moments | None = None, seed: int = 0
) -> CodebookWeight:
    """:func:`vq_plugin.quantize_weight` of one weight; errors name its slot."""
    try:
        return quantize_weight(weight, scheme, seed=seed, moments=moments)
    except ValueError as error:
        raise ValueError(f"layer {shown(name)}: {error}") from error


def check_slot(slot: Slot) -> None:
    """Raises ``ValueError`` for a weight that no scheme can compress, before any work is done.

    Calibration would run into it, too, but blame NaN on the layer after it.
    """
    check_not_lazy(slot)
    try:
        check_weight(slot.value)
    except ValueError as error:
        raise ValueError(f"layer {slot.shown}: {error}") from error


def check_not_lazy(slot: Slot) -> None:
    """Raises ``ValueError`` for a weight that is not there before its first batch."""
    parameters = slot.module._parameters.values()
    if any(is_lazy(parameter) for parameter in parameters if parameter is not None):
        raise ValueError(f"layer {slot.shown} is lazy and has no weight yet: run one batch first")
