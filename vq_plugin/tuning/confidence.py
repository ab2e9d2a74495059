"""Which settings hold the budget for sure, although the search looked at many of them."""

from __future__ import annotations

import math
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import TypeVar

import torch
from torch import Tensor

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.metric import Metric, expected_bound, loss_bound, p_value
from vq_plugin.tuning.propose import Outcome

K = TypeVar("K", bound=Hashable)


@dataclass(frozen=True)
class Judge:
    """Says whether a metric is within the budget, given the float model's on the tuning split.

    Without a confidence the mean decides, with what the margin leaves of the limit. With one, a
    search among many models would sooner or later find one that is lucky on the samples it is
    judged by. So the samples are split: on the first third the search does what it likes, and
    leaves out models that a smaller one beats, but for safe ones. The rest, which it never sees,
    tests the others from the largest to the smallest, up to the first that is not confirmed. To
    confirm any that is over the budget, the first of those has to pass, whose chance is at most 1 -
    confidence (fixed sequence testing; Angelopoulos et al. 2021, "Learn then test", arXiv
    2110.01052).
    """

    asked: LossBudget
    baseline: Metric

    @cached_property
    def budget(self) -> LossBudget:
        """What was asked for, without its margin: the tuning split has to keep to that."""
        return self.asked.searched

    def __post_init__(self) -> None:
        """ValueError without samples enough for the confidence, or for a relative loss from 0."""
        if self.budget.confidence is not None and self.baseline.samples is None:
            raise ValueError(
                "a confidence needs one result per sample: let evaluate return a vector, such as "
                "predictions == labels, not its mean"
            )
        samples = self.baseline.samples
        self.budget.loss(self.baseline.mean, self.baseline.mean)
        if self.budget.confidence is None or samples is None:
            return
        for part in self._parts():
            self.budget.loss(float(samples[part].mean()), float(samples[part].mean()))
        _, second = self._parts()
        if not self._shown(self.baseline, second):
            last = samples[second]
            bound = loss_bound(self.budget, last, last)
            raise ValueError(
                f"{len(samples)} samples cannot show a loss within {self.budget}: even for an "
                f"unchanged model its bound would be {bound:.2g}; let evaluate use about "
                f"{math.ceil(1.5 * len(samples) * bound / self.budget.limit)} samples, or allow a "
                "larger loss"
            )

    def outcome(self, metric: Metric | None) -> Outcome:
        """What the search is told of a metric; ``None`` for an evaluation that failed."""
        if metric is None:
            return Outcome(float("nan"), held=False)
        if self.budget.confidence is None:
            level, doubt = self.budget.loss(self.baseline.mean, metric.mean), 0.0
        else:
            # The bound that the second part would give if it were like the first, and its error.
            assert metric.samples is not None
            assert self.baseline.samples is not None
            first, second = self._parts()
            samples = self.baseline.samples[first], metric.samples[first]
            level, doubt = expected_bound(self.budget, *samples, len(second))
        return Outcome(level, level <= self.budget.limit + 1e-12, doubt)

    def confirmed(self, metrics: Mapping[K, Metric], nbytes: Mapping[K, int]) -> list[K]:
        """The models that are within the budget, of all that were evaluated.

        Without a confidence all that hold. With one, those that are confirmed, the largest first;
        what a smaller model beats is not tested.
        """
        found = {key: self.outcome(metric) for key, metric in metrics.items()}
        if self.budget.confidence is None:
            return [key for key, outcome in found.items() if outcome.held]

        def beats(key: K, other: K) -> bool:
            mine, its = found[key], found[other]
            if nbytes[key] == nbytes[other]:
                return mine.level < its.level
            # Luck must not hide a safe model behind a smaller one.
            better = mine.level + mine.doubt < its.level + its.doubt
            return nbytes[key] < nbytes[other] and better and not its.safe(self.budget.limit)

        _, second = self._parts()
        sure: list[K] = []
        for key in sorted(found, key=lambda k: -nbytes[k]):
            if any(beats(k, key) for k in found):
                continue
            if not self._shown(metrics[key], second):
                break
            # The first part may have been unlucky; what is returned is within the budget on all.
            if self._shown(metrics[key], slice(None)):
                sure.append(key)
        return sure

    def _shown(self, metric: Metric, part: Tensor | slice) -> bool:
        """Whether some of the samples show that the loss is within the budget."""
        assert metric.samples is not None
        assert self.baseline.samples is not None
        assert self.budget.confidence is not None
        value = p_value(self.budget, self.baseline.samples[part], metric.samples[part])
        return value <= 1 - self.budget.confidence

    def _parts(self) -> tuple[Tensor, Tensor]:
        """Which samples are for the search, and which confirm."""
        assert self.baseline.samples is not None
        count = len(self.baseline.samples)
        # Data sets are often sorted by class.
        generator = torch.Generator("cpu").manual_seed(0)
        order = torch.randperm(count, generator=generator, device="cpu")
        return order[: -(-count // 3)], order[-(-count // 3) :]
