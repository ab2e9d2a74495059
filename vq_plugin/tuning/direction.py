"""Whether a metric is read the right way round: shuffled outputs must not seem to be better."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

from torch import nn

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.shuffled import shuffled

_log = logging.getLogger(__name__)

# Shuffles that must all seem better: of a model that is as good as chance, and of whose metric a
# search has found a gain, they do so by enough in 2 of 100 cases.
_SHUFFLES = 7
#: The metric of a float model, made by the function, which is named; ``None`` if it fails.
Measure = Callable[[str, Callable[[], nn.Module]], float | None]


class DirectionError(ValueError):
    """A metric that seems to be read the wrong way round: ``found`` speaks against it."""

    def __init__(self, budget: LossBudget, found: str) -> None:
        self.other, self.found = not budget.higher_is_better, found
        super().__init__(self.told(f"say higher_is_better={self.other}"))

    def told(self, remedy: str) -> str:
        """The message with what to do about it."""
        return (
            f"by evaluate {self.found}: if the metric is better when it is "
            f"{'higher' if self.other else 'lower'}, {remedy}; otherwise evaluate does not measure "
            "what the model is for"
        )


@dataclass(frozen=True)
class Direction:
    """How the metric takes it that each sample gets the output of another.

    Nothing is evaluated before it is asked. A metric that is read rightly gets worse, which one
    evaluation shows.
    """

    model: nn.Module
    budget: LossBudget
    baseline: float
    measure: Measure

    @cached_property
    def better(self) -> list[float] | None:
        """Metrics of shuffled models if all are better than the float model's, else none.

        ``None`` if shuffling changes nothing that the metric sees.
        """
        for within in (False, True):
            scores: list[float] = []
            for seed in range(_SHUFFLES):
                score = self._score(seed, within)
                if score is None:
                    break
                loss = self.budget.loss(self.baseline, score)
                if not scores and abs(loss) <= self.budget.limit:
                    break
                if loss >= -self.budget.limit:
                    return []
                scores.append(score)
            else:
                gain = min(abs(score - self.baseline) for score in scores)
                return scores if gain > (max(scores) - min(scores)) / 2 else []
        return None

    def _score(self, seed: int, within: bool) -> float | None:
        name = f"shuffled{' within' if within else ''} {seed}"
        return self.measure(name, lambda: shuffled(self.model, seed, within=within))

    def wrong(self, gain: float) -> str | None:
        """What speaks against the direction, now that a compressed model is better by ``gain``."""
        _log.info("a compressed model is better by %.4g: shuffled outputs must not be", gain)
        if not self.better:
            return None
        return (
            f"a compressed model is better than the float model by {gain:.4g}, and so are "
            f"{len(self.better)} that give each sample the output of another, with "
            f"{min(self.better):.4g} to {max(self.better):.4g} instead of {self.baseline:.4g}"
        )

    def check(self, gain: float) -> None:
        """DirectionError if a compressed model is better by ``gain``, as shuffled ones are."""
        if (found := self.wrong(gain)) is not None:
            raise DirectionError(self.budget, found)
