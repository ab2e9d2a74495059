"""INC's tolerable loss, with a look at the numbers that it is compared with."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any, Self


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
                return metric.item() * tolerance
            case "ge", (metric, Tolerance() as tolerance):
                return metric.item() >= tolerance
        plain = [float(value) if isinstance(value, cls) else value for value in args]
        return function(*plain, **(kwargs or {}))

    def __rsub__(self, other: Any) -> Self:
        return type(self)(other - float(self))

    def __rmul__(self, baseline: Any) -> Self:
        value = _finite("float model", baseline)
        if value <= 0:
            raise ValueError(
                f"eval_fn returned {value} for the float model: a relative loss needs a metric "
                "above 0 that grows as the model gets better"
            )
        return type(self)(value * float(self))

    def __le__(self, score: Any) -> bool:
        return float(self) <= _finite("compressed model", score)


def _finite(what: str, metric: Any) -> float:
    value = float(metric)
    if not math.isfinite(value):
        raise ValueError(f"eval_fn returned {value} for the {what}: a metric must be finite")
    return value
