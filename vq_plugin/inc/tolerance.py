"""INC's tolerable loss, with a look at the numbers that it is compared with."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Self

from vq_plugin.inc.gate import Gate, finite


class Tolerance(float):
    """A tolerable loss for INC's rule ``score >= baseline * (1 - tolerance)``.

    NaN fails every comparison, so that INC would go through all candidates and return any of them,
    within the budget or not; so does a baseline of 0 or less, for which the rule makes no sense.
    This number takes part in the comparison, and refuses: ``1 - it`` and ``baseline * (1 - it)``
    are such numbers too.

    Example:
        >>> 0.915 >= 0.92 * (1 - Tolerance(0.01)), 0.905 >= 0.92 * (1 - Tolerance(0.01))
        (True, False)
    """

    # Looks at what is compared, where there is one; the float model's metric, once it is known.
    gate: Gate | None = None
    baseline: float | None = None

    # Numbers of NumPy, and below those of torch, then leave the operation to this class.
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
            case "mul", (metric, Tolerance() as tolerance):
                return tolerance.__rmul__(metric)
            case "ge", (metric, Tolerance() as tolerance):
                return tolerance.__le__(metric)
        plain = [float(value) if isinstance(value, cls) else value for value in args]
        return function(*plain, **(kwargs or {}))

    def __rsub__(self, other: Any) -> Self:
        return self._with(other - float(self))

    def __rmul__(self, baseline: Any) -> Self:
        value = finite("float model", baseline)
        if value <= 0:
            raise ValueError(
                f"eval_fn returned {value} for the float model: a relative loss needs a metric "
                "above 0 that grows as the model gets better"
            )
        threshold = self._with(value * float(self))
        threshold.baseline = value
        return threshold

    def __le__(self, score: Any) -> bool:
        value = finite("compressed model", score)
        if self.gate is not None and self.baseline is not None:
            self.gate.check(self.baseline, value)
        return float(self) <= value

    @classmethod
    def gated(cls, limit: float, gate: Gate) -> Self:
        """A tolerance whose metric is looked at."""
        made = cls(limit)
        made.gate = gate
        return made

    def _with(self, value: float) -> Self:
        made = type(self)(value)
        made.gate = self.gate
        return made
