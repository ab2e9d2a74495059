"""Which settings hold the budget for sure, although the search looked at many of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.metric import Metric, loss_bound
from vq_plugin.tuning.propose import Outcome


@dataclass(frozen=True)
class Judge:
    """Says whether a metric is within the budget.

    Without a confidence the mean decides. With one, a search among many models would sooner or
    later find one that is lucky on the samples it is judged by. So the samples are split: on the
    first part the search does what it likes; the second confirms its findings, from the safest to
    the riskiest, and stops at the first that it cannot confirm. That fixed sequence keeps the
    chance of a wrong answer below 1 - confidence without any correction (Angelopoulos et al. 2021,
    "Learn then test", arXiv 2110.01052, fixed sequence testing).

    Attributes:
        budget: The budget.
        baseline: The float model's metric on the tuning split.
    """

    budget: LossBudget
    baseline: Metric

    def __post_init__(self) -> None:
        """Checks that there are samples if a confidence asks for them.

        Raises:
            ValueError: If there are not, or the budget is relative and the baseline is 0.
        """
        if self.budget.confidence is not None and self.baseline.samples is None:
            raise ValueError(
                "a confidence needs one result per sample: let evaluate return a vector, such as "
                "predictions == labels, not its mean"
            )
        means = [self.baseline.mean]
        if self.budget.confidence is not None and self.baseline.samples is not None:
            means += [float(self.baseline.samples[self._part(part)].mean()) for part in (0, 1)]
        for mean in means:
            self.budget.loss(mean, mean)

    def outcome(self, metric: Metric | None) -> Outcome:
        """What the search is told of a metric; ``None`` for an evaluation that failed."""
        if metric is None:
            return Outcome(float("nan"), held=False)
        if self.budget.confidence is None:
            level = self.budget.loss(self.baseline.mean, metric.mean)
        else:
            level = self._bound(metric, part=0)
        return Outcome(level, level <= self.budget.limit + 1e-12)

    def confirmed(self, metrics: Mapping[Setting, Metric]) -> list[Setting]:
        """The settings that are within the budget, of those that held in the search."""
        if self.budget.confidence is None:
            return list(metrics)
        limit = self.budget.limit
        sure: list[Setting] = []
        for setting in sorted(metrics, key=lambda s: self._bound(metrics[s], part=0)):
            if self._bound(metrics[setting], part=1) > limit:
                break
            sure.append(setting)
        return sure

    def _bound(self, metric: Metric, part: int) -> float:
        assert metric.samples is not None
        assert self.baseline.samples is not None
        own = self._part(part)
        return loss_bound(self.budget, self.baseline.samples[own], metric.samples[own])

    def _part(self, part: int) -> Tensor:
        """Which samples are of the first part, for the search, or of the second."""
        assert self.baseline.samples is not None
        # Data sets are often sorted by class.
        count = len(self.baseline.samples)
        return torch.randperm(count, generator=torch.Generator().manual_seed(0)).chunk(2)[part]
