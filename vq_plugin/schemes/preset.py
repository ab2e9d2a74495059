"""Words for how much of a model compression may change."""

from __future__ import annotations

from dataclasses import dataclass, field

from vq_plugin.arguments import is_number
from vq_plugin.schemes.scalar import KM, Uniform
from vq_plugin.schemes.scheme import Scheme, own_number

_CENTERS = (2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256)
# From 0.05 to 3.2 times the size of a weight: about half to seven bits each.
_STEPS = tuple(round(0.05 * 2 ** (at / 3), 3) for at in range(19))


def _ladder() -> tuple[Scheme, ...]:
    centers = (KM(k=k) for k in _CENTERS)
    return (*centers, *(Uniform(step=step, scale="row") for step in _STEPS))


@dataclass(frozen=True)
class Preset:
    """How much of a model compression may change, and what each weight may become for it.

    A preset stands where a scheme does in :func:`vq_plugin.compress` and
    :func:`vq_plugin.choose_schemes`, or its name in :data:`PRESETS`. All weights that have it share
    ``change``: it is spent where it saves most bytes.

    Attributes:
        change: With calibration, the squared change of the model's outputs over their variance, as
            predicted (:mod:`vq_plugin.sensitivity`). Without, the mean squared error of a weight's
            rows over their mean squares, added up over the weights.
        schemes: What each weight may become.

    Example:
        >>> PRESETS["auto"].change
        0.01
    """

    change: float
    schemes: tuple[Scheme, ...] = field(default_factory=_ladder, repr=False)

    def __post_init__(self) -> None:
        change = own_number(self, "change")
        if not (is_number(change) and 0 < change < 1):
            raise ValueError(f"a preset's change must be above 0 and below 1, got {self.change!r}")
        if not self.schemes or not all(isinstance(each, Scheme) for each in self.schemes):
            raise ValueError(f"a preset needs schemes to choose from, got {self.schemes!r}")


#: From the most faithful to the smallest; ``"auto"`` is for most uses.
PRESETS = {
    "faithful": Preset(change=0.001),
    "auto": Preset(change=0.01),
    "small": Preset(change=0.05),
}
