"""Whether a metric sees that a model is ruined."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, partial

from vq_plugin.tuning.agreement import ALIKE
from vq_plugin.tuning.probe import Probe

_log = logging.getLogger(__name__)

# Ruined models that must all hold the budget: one may, of a model that is nearly as good as chance.
_RUINED = 3
# Parts of its baseline that a metric loses where it sees ruin: a wider budget is meant.
_SEEN = 0.2


@dataclass(frozen=True)
class Sight:
    """How the metric takes it that a model is ruined.

    Nothing is evaluated before it is asked. One evaluation clears a metric that sees it.
    """

    probe: Probe

    @cached_property
    def blind(self) -> bool:
        """Whether ruined models lose so little that it says nothing of others.

        A metric of outputs that knows no answers, such as how sure they are, sees no shuffles. One
        that runs parts of the model by itself does not either: zeros in the place of outputs tell
        the two apart. Models that cannot be evaluated prove nothing.
        """
        _log.debug("show evaluate what is ruined")
        whole = self._hold(partial(self.probe.shuffled, within=False))
        if whole is False or (whole and self._sees_zeros()):
            return bool(whole)
        blind = False
        for ruined in (partial(self.probe.shuffled, within=True), self.probe.scrambled):
            held = self._hold(ruined)
            if held is False:
                return False
            blind = blind or bool(held)
        return blind

    def doubt(
        self,
        agreement: float | None,
        by: str = "evaluate",
        *,
        calibrated: bool,
    ) -> str | None:
        """Why the smallest setting that held may be ruined all the same.

        Args:
            agreement: With the float model, of its outputs; ``None`` if there is no data for it.
            by: Name of the function that gives the metric.
            calibrated: Whether outputs are compared on calibration data, or on what that function
                gives the model.

        Returns:
            What is wrong, and the remedy; ``None`` if outputs agree enough, the metric would have
            seen it, or the budget asks for no agreement.
        """
        floor = self.probe.budget.min_agreement
        if floor is None or (agreement is not None and agreement >= max(ALIKE, floor)):
            return None
        agrees = ""
        if agreement is not None:
            data = "the calibration data" if calibrated else f"what {by} gives the model"
            agrees = (
                f"on {data} the smallest setting that held "
                f"agrees with the float model to {agreement:.2f} of 1, and "
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
            if self.probe.loss(found) > self._unseen:
                return False
        return True

    @property
    def _unseen(self) -> float:
        """The largest loss that may be chance."""
        limit = self.probe.budget.limit
        return limit if self.probe.budget.relative is None else min(limit, _SEEN)

    def _sees_zeros(self) -> bool:
        score = self.probe.silenced()
        return score is None or abs(self.probe.loss(score)) > self._unseen
