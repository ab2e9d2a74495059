"""Whether a metric is read the right way round."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.probe import Probe

_log = logging.getLogger(__name__)

# Shuffles that must all seem better: of a model that is as good as chance, and of whose metric a
# search has found a gain, they do so by enough in 2 of 100 cases.
_SHUFFLES = 7


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
    """How the metric takes it that samples are given outputs of others.

    Nothing is evaluated before it is asked. A metric that is read rightly gets worse, which one
    evaluation shows.
    """

    probe: Probe

    @cached_property
    def better(self) -> list[float] | None:
        """Metrics of shuffled models if all are better than the float model's, else none.

        ``None`` if shuffling changes nothing that the metric sees.
        """
        limit = self.probe.budget.limit
        for within in (False, True):
            scores: list[float] = []
            for seed in range(_SHUFFLES):
                score = self.probe.shuffled(seed, within=within)
                if score is None:
                    break
                loss = self.probe.loss(score)
                if not scores and abs(loss) <= limit:
                    break
                if loss >= -limit:
                    return []
                scores.append(score)
            else:
                gain = min(abs(score - self.probe.baseline) for score in scores)
                return scores if gain > (max(scores) - min(scores)) / 2 else []
        return None

    def wrong(self, gain: float) -> str | None:
        """What speaks against the direction, now that a compressed model is better by ``gain``."""
        _log.info("a compressed model is better by %.4g: shuffled outputs must not be", gain)
        if not self.better:
            return None
        return (
            f"a compressed model is better than the float model by {gain:.4g}, and so are "
            f"{len(self.better)} that give each sample the output of another, with "
            f"{min(self.better):.4g} to {max(self.better):.4g} instead of {self.probe.baseline:.4g}"
        )

    def check(self, gain: float) -> None:
        """DirectionError if a compressed model is better by ``gain``, as shuffled ones are."""
        if (found := self.wrong(gain)) is not None:
            raise DirectionError(self.probe.budget, found)
