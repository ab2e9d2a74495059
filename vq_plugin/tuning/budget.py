"""How much accuracy may be lost."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from vq_plugin.arguments import as_number, brief, check_flag, is_number

# Metrics above this are no parts of 1, and budgets below this are hardly meant in percent.
_PERCENT, _POINT = 2.0, 0.05


@dataclass(frozen=True)
class LossBudget:
    """The largest acceptable loss of a metric; give exactly one of the two limits.

    Attributes:
        relative: Part of the baseline metric, in (0, 1): 0.01 lets an accuracy of 0.920 fall to
            0.9108 (the rule of Intel Neural Compressor).
        absolute: Difference in the metric's own unit, above 0: 0.01 lets 0.920 fall to 0.910 (the
            rule of Gong et al. 2014, "1 % loss"), and 1.0 lets 92.0 fall to 91.0.
        higher_is_better: Whether the metric grows as the model gets better.
        confidence: If given, in (0.5, 1): a model is accepted only if the one-sided bound of its
            loss at this confidence is within the limit. Needs a metric that is given per sample.
        min_agreement: Whatever the metric says, outputs on the calibration data, or else on what
            ``evaluate`` gives the model, must agree with the float model's at least so far, see
            :mod:`vq_plugin.tuning.agreement`, and to 0.9 if the metric does not see what ruins a
            model; ``None`` asks for none.
        margin: Part of the limit, below 1, that a search leaves unused, for metrics that are not
            given per sample and so have no confidence: with 0.5, of a limit of 1 %, the smallest
            model within 0.5 % is chosen on the tuning split, and 1 % decides on the test split.

    Example:
        >>> budget = LossBudget(relative=0.01)
        >>> budget.holds(baseline=0.92, score=0.912)
        True
    """

    relative: float | None = None
    absolute: float | None = None
    higher_is_better: bool = True
    confidence: float | None = None
    min_agreement: float | None = 0.2
    margin: float = 0.0

    def __post_init__(self) -> None:
        for each in ("relative", "absolute", "confidence", "min_agreement", "margin"):
            object.__setattr__(self, each, as_number(getattr(self, each)))
        direction = check_flag("higher_is_better", self.higher_is_better)
        object.__setattr__(self, "higher_is_better", direction)
        limits = [value for value in (self.relative, self.absolute) if value is not None]
        if len(limits) != 1:
            raise ValueError("give exactly one of relative= and absolute=")
        limit = limits[0]
        number = is_number(limit)
        if self.relative is not None and not (number and 0 < limit < 1):
            raise ValueError(
                f"a relative budget is a number between 0 and 1, got {brief(limit)}; 1 % is 0.01"
            )
        if not (number and 0 < limit < math.inf):
            raise ValueError(f"an absolute budget is a number above 0, got {brief(limit)}")
        if self.confidence is not None and not (
            isinstance(self.confidence, float) and 0.5 < self.confidence < 1
        ):
            raise ValueError(f"a confidence is between 0.5 and 1, got {self.confidence!r}")
        floor = self.min_agreement
        if floor is not None and not (is_number(floor) and 0 <= floor <= 1):
            raise ValueError(
                f"min_agreement is from 0 to 1, or None for no floor, got {brief(floor)}"
            )
        if not (is_number(self.margin) and 0 <= self.margin < 1):
            raise ValueError(
                f"a margin is a part of the limit, from 0 and below 1, got {self.margin!r}"
            )
        if self.margin and self.confidence is not None:
            raise ValueError("give confidence or margin: a confidence finds its margin by itself")

    @property
    def limit(self) -> float:
        """The limit, relative or absolute."""
        limit = self.relative if self.relative is not None else self.absolute
        assert limit is not None
        return limit

    @property
    def searched(self) -> LossBudget:
        """The budget on the tuning split: the margin is taken off the limit.

        Example:
            >>> print(LossBudget(relative=0.01, margin=0.25).searched)
            0.75% of the baseline
        """
        if not self.margin:
            return self
        left = (1 - self.margin) * self.limit
        if self.relative is not None:
            return replace(self, relative=left, margin=0.0)
        return replace(self, absolute=left, margin=0.0)

    def loss(self, baseline: float, score: float) -> float:
        """Loss of ``score`` against ``baseline``, in the unit of the limit; negative for a gain.

        Raises:
            ValueError: If the budget is relative and the baseline is 0.
        """
        difference = baseline - score if self.higher_is_better else score - baseline
        if self.relative is None:
            return difference
        if baseline == 0:
            raise ValueError("a relative budget needs a baseline other than 0; use absolute=")
        return difference / abs(baseline)

    def check_unit(self, baseline: float) -> None:
        """Raises ``ValueError`` if the limit seems to be in another unit than the baseline."""
        if self.absolute is None or not self.higher_is_better:
            return
        if 0 < baseline <= self.absolute:
            raise ValueError(
                f"absolute={self.absolute:.4g} allows all of the baseline {baseline:.4g} to be "
                "lost; of a metric from 0 to 1, one point is absolute=0.01"
            )
        if _PERCENT < baseline <= 100 and self.absolute < _POINT:
            raise ValueError(
                f"the baseline {baseline:.4g} seems to be in percent, of which absolute="
                f"{self.absolute:.4g} is {self.absolute:.4g} points; one point is absolute=1, and "
                "a budget as small as this can be given as relative="
            )

    def holds(self, baseline: float, score: float) -> bool:
        """Whether ``score`` is a number and its loss is within the limit."""
        return math.isfinite(score) and self.loss(baseline, score) <= self.limit + 1e-12

    def loss_text(self, loss: float) -> str:
        """A loss in the unit of the limit.

        Example:
            >>> LossBudget(relative=0.01).loss_text(0.004)
            '0.40 %'
        """
        # Adding 0.0 turns a rounded -0.0 into 0.0.
        if self.relative is not None:
            return f"{round(100 * loss, 2) + 0.0:.2f} %"
        return f"{round(loss, 4) + 0.0:.4f}"

    def __str__(self) -> str:
        sure = "" if self.confidence is None else f", with {self.confidence:.4g} confidence"
        if self.margin:
            sure = f", with a margin of {self.margin:.4g} of it"
        if self.relative is not None:
            return f"{self.relative:.2%} of the baseline{sure}"
        return f"{self.absolute:.4g} absolute{sure}"
