"""INC's tolerable loss, with a look at the numbers that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Self

from vq_plugin.inc.gate import Gate, finite


class Tolerance(float):
    """A tolerable loss for INC's rule ``score >= baseline * (1 - tolerance)``.

    NaN fails every comparison, so that INC would go through all candidates and return any of them,
    within the budget or not; so does a baseline of 0 or less, for which the rule makes no sense.
    This number takes part in the comparison, and refuses: ``1 - it`` and ``baseline * (1 - it)``
    are no numbers, since decimals and fractions would compute and compare with those by themselves.

    Example:
        >>> 0.915 >= 0.92 * (1 - Tolerance(0.01)), 0.905 >= 0.92 * (1 - Tolerance(0.01))
        (True, False)
    """

    # Looks at what is compared, where there is one.
    gate: Gate | None = None

    @classmethod
    def gated(cls, limit: float, gate: Gate) -> Self:
        """A tolerance whose metric is looked at."""
        made = cls(limit)
        made.gate = gate
        return made

    def __rsub__(self, other: Any) -> Any:
        left = other - float(self)
        return _Left(left, self.gate) if isinstance(left, float) else left


@dataclass(frozen=True)
class _Asked:
    """What other numbers leave the operation to: those of NumPy, and below those of torch."""

    value: float
    gate: Gate | None

    __array_ufunc__ = None

    @classmethod
    def __torch_function__(
        cls,
        function: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        match function.__name__, args:
            case "mul", (metric, _Left() as left):
                return left.__rmul__(metric)
            case "ge", (metric, _Least() as least):
                return least.__le__(metric)
        return NotImplemented

    def __float__(self) -> float:
        return self.value

    def __format__(self, spec: str) -> str:
        return format(self.value, spec)


@dataclass(frozen=True)
class _Left(_Asked):
    """The part of the baseline that has to be left."""

    def __rmul__(self, baseline: Any) -> _Least:
        value = finite("float model", baseline)
        if value <= 0:
            raise ValueError(
                f"eval_fn returned {value} for the float model: a relative loss needs a metric "
                "above 0 that grows as the model gets better"
            )
        return _Least(value * self.value, self.gate, value)


@dataclass(frozen=True)
class _Least(_Asked):
    """The least metric, of a float model that has ``baseline``."""

    baseline: float

    def __le__(self, score: Any) -> bool:
        value = finite("compressed model", score)
        if self.gate is not None:
            self.gate.check(self.baseline, value)
        return self.value <= value
