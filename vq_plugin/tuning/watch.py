"""What a search tells while it goes on: lines of the log, a bar, a call of the user's function."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self, TypeAlias

from vq_plugin.progress import bar
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.result import Trial, kind_of

#: Called with every trial as it ends.
Callback: TypeAlias = Callable[[Trial], object]

_log = logging.getLogger(__name__)


@dataclass
class Watch:
    """One search as it is seen from outside; a context manager.

    The log has a line for every stage and every trial. On a terminal a bar counts the trials.
    """

    budget: LossBudget
    deadline: Deadline
    callback: Callback | None = None
    count: int = 0
    best: float = 0.0
    # Of the stage: how many trials there can be in its end, how many were evaluated, since when.
    _most: int = 0
    _new: int = 0
    _since: float = field(default_factory=time.monotonic)

    def __enter__(self) -> Self:
        """Opens the bar."""
        form = "{desc} |{bar:20}| {n_fmt} trials, {elapsed}{postfix}"
        self._bar: Any = bar(total=1, bar_format=form, leave=False)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Closes the bar."""
        self._bar.close()

    def stage(self, text: str, trials: int = 0) -> None:
        """Says what begins, and how many trials that may take at most."""
        self._since, self._new, self._most = time.monotonic(), 0, self.count + trials
        self._bar.total = max(1, self._most)
        self._bar.set_description_str(text)
        _log.info("%s", text)

    def trial(self, trial: Trial, resumed: bool) -> None:
        """Says how a trial ended; ``resumed`` ones were evaluated by an earlier run."""
        self.count += 1
        self._new += not resumed
        if trial.held:
            self.best = max(self.best, trial.rate)
        best = f"best {self.best:.1f}x" if self.best else f"none {self._held} yet"
        left = self._left()
        took = "resumed" if resumed else f"{trial.seconds:.1f} s"
        _log.info("trial %d: %s; %s; %s%s", self.count, self._outcome(trial), took, best, left)
        self._bar.set_postfix_str(f"{best}{left}", refresh=False)
        self._bar.update()
        if self.callback is not None:
            self.callback(trial)

    def _outcome(self, trial: Trial) -> str:
        if trial.error is not None:
            return f"{trial.rate:.1f}x failed: {' '.join(trial.error.split())}"
        kind, loss = kind_of(self.budget, trial), self.budget.loss_text(trial.loss)
        return f"{trial.rate:.1f}x {self._held if trial.held else kind}, loss {loss}"

    @property
    def _held(self) -> str:
        """What a trial is that holds the budget as far as the search can see.

        With a confidence that goes by a part of the samples; the others have their say in the end.
        """
        return "held" if self.budget.confidence is None else "likely"

    def _left(self) -> str:
        """The longest that the search may still take, if all trials take as long as so far."""
        trials = self._most - self.count
        if not self._new or trials <= 0:
            return ""
        seconds = trials * (time.monotonic() - self._since) / self._new
        return f"; at most {_duration(min(seconds, max(0.0, self.deadline.left)))} left"


def _duration(seconds: float) -> str:
    """A time in its largest unit."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"
