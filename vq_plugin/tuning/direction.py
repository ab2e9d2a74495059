"""What a metric says of models that are ruined: whether it sees it, and is read rightly."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from torch import nn

from vq_plugin.tuning.agreement import ALIKE
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.ruined import scrambled, shuffled, silenced

_log = logging.getLogger(__name__)

# Shuffles that must all seem better: of a model that is as good as chance, and of whose metric a
# search has found a gain, they do so by enough in 2 of 100 cases.
_SHUFFLES = 7
# Ruined models that must all hold the budget: one may, of a model that is nearly as good as chance.
_RUINED = 3
# Parts of its baseline that a metric loses where it sees ruin: a wider budget is meant.
_SEEN = 0.2
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
    """How the metric takes it that a model is ruined, as by giving samples outputs of others.

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

    @cached_property
    def blind(self) -> bool:
        """Whether ruined models lose so little that it says nothing of others.

        A metric of outputs that knows no answers, such as how sure they are, sees no shuffles. One
        that runs parts of the model by itself does not either: zeros in the place of outputs tell
        the two apart. Models that cannot be evaluated prove nothing.
        """
        _log.debug("show evaluate what is ruined")
        whole = self._hold(partial(self._score, within=False))
        if whole is False or (whole and self._sees_zeros()):
            return bool(whole)
        blind = False
        for ruined in (partial(self._score, within=True), self._signs):
            held = self._hold(ruined)
            if held is False:
                return False
            blind = blind or bool(held)
        return blind

    def doubt(self, agreement: float | None, by: str = "evaluate") -> str | None:
        """Why the smallest setting that held may be ruined all the same.

        Args:
            agreement: With the float model, of its outputs; ``None`` if there is no data for it.
            by: Name of the function that gives the metric.

        Returns:
            What is wrong, and the remedy; ``None`` if outputs agree enough, the metric would have
            seen it, or the budget asks for no agreement.
        """
        floor = self.budget.min_agreement
        if floor is None or (agreement is not None and agreement >= max(ALIKE, floor)):
            return None
        agrees = ""
        if agreement is not None:
            agrees = (
                "on the calibration data the smallest setting that held agrees with the float "
                f"model to {agreement:.2f} of 1, and "
            )
            if agreement < floor:
                return (
                    f"{agrees}min_agreement={floor:.4g}: {by} does not see what compression has "
                    "done"
                )
        if not self.blind:
            return None
        remedy = "" if agrees else ", or give calibration data, on which outputs are compared"
        return (
            f"{agrees}by {by} models that were ruined on purpose are within the budget, too: have "
            f"it measure what the model that it is given is for, or allow less{remedy}"
        )

    def _hold(self, score: Callable[[int], float | None]) -> bool | None:
        """Whether models by their seeds all hold the budget; ``None`` if one fails before."""
        for seed in range(_RUINED):
            found = score(seed)
            if found is None:
                return None
            if self.budget.loss(self.baseline, found) > self._unseen:
                return False
        return True

    @property
    def _unseen(self) -> float:
        """The largest loss that may be chance."""
        limit = self.budget.limit
        return limit if self.budget.relative is None else min(limit, _SEEN)

    def _sees_zeros(self) -> bool:
        score = self.measure("silenced", lambda: silenced(self.model))
        return score is None or abs(self.budget.loss(self.baseline, score)) > self._unseen

    def _signs(self, seed: int) -> float | None:
        return self.measure(f"signs {seed}", lambda: scrambled(self.model, seed))

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
