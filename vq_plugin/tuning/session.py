"""One search: what is evaluated, one setting after the other, until nothing is left to try."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass, field
from functools import partial

from torch import nn

from vq_plugin.checkpoint import round_rest
from vq_plugin.progress import progress
from vq_plugin.replace import assemble
from vq_plugin.sizes import account
from vq_plugin.ties import sharing
from vq_plugin.tuning.allocation import Setting, frontier
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.identity import Identity, Tried
from vq_plugin.tuning.metric import Metric, loss_interval, mismatch
from vq_plugin.tuning.propose import Landscape, Outcome, Phase, ahead, propose
from vq_plugin.tuning.recovery import Trainer, next_to_train
from vq_plugin.tuning.result import Trial
from vq_plugin.tuning.trials import Evaluator


@dataclass
class Session:
    """One search; everything but its trials is fixed from the start.

    ``model`` is compressed, ``evaluator`` is that of the tuning split, ``max_trials`` are without
    training, ``deadline`` is a time of the monotonic clock. ``cut`` says what a limit cut off;
    ``metrics`` has what could be evaluated, ``outcomes`` what the search knows of settings as they
    were fitted, ``trials`` all in order.
    """

    model: nn.Module
    identity: Identity
    judge: Judge
    evaluator: Evaluator
    max_trials: int
    deadline: float | None
    trainer: Trainer | None = None
    cut: str | None = None
    metrics: dict[Tried, Metric] = field(default_factory=dict)
    outcomes: dict[Setting, Outcome] = field(default_factory=dict)
    trials: dict[Tried, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        fits = self.identity.fits
        layers = [ladder.candidates for ladder in fits.layers]
        # The float model itself is no answer.
        settings = [s for s in frontier(layers) if any(fits.schemes(s).values())]
        self.landscape = Landscape(layers, settings, self.judge.budget.limit)
        names, owners = [ladder.name for ladder in fits.layers], sharing(self.model)
        self.account = account(self.model, names, self.identity.rest)
        self.tied = {name: [slot.name for slot in owners[name]] for name in names}

    def run(self) -> None:
        """Evaluates until nothing is left to try, or a limit is reached."""
        with progress(total=self.max_trials, desc="tune", unit="trial") as bar:
            while (proposal := propose(self.landscape, self.outcomes)) is not None:
                self.cut = self._limit_reached()
                if self.cut:
                    return
                setting, phase = proposal
                if not self._known(setting):
                    # What will probably be asked next too, one for every worker.
                    count = self.evaluator.workers
                    wanted = map(Tried, ahead(self.landscape, self.outcomes, count, self._known))
                    self.evaluator.run({self.identity.key(t): self.compressed(t) for t in wanted})
                self.outcomes[setting] = self._keep(Tried(setting), phase)
                bar.set_postfix(rate=self._best_rate())
                bar.update()

    def recover(self, trainer: Trainer) -> None:
        """Trains settings that are past the budget and evaluates them, one after the other."""
        most = trainer.recovery.max_trials
        held: dict[Setting, bool] = {}
        best = self._smallest()
        size = math.inf if best is None else self.landscape.nbytes(best)
        with progress(total=most, desc="recovery", unit="trial") as bar:
            while (setting := next_to_train(self.landscape, size, held)) is not None:
                late = self.deadline is not None and time.monotonic() >= self.deadline
                if late or len(held) >= most:
                    limit = "timeout" if late else f"recovery's max_trials={most}"
                    cut = f"{limit} reached after {len(held)} trained settings: others were left"
                    self.cut = "; ".join(filter(None, [self.cut, cut]))
                    return
                tried = Tried(setting, trained=True)
                if not self._known(setting, trained=True):
                    self.evaluator.run_after(
                        partial(self._train, tried),
                        self.identity.key(tried),
                        self.compressed(Tried(setting)),
                    )
                held[setting] = self._keep(tried, "recovery").held
                bar.set_postfix(rate=self._best_rate())
                bar.update()

    def nbytes(self, setting: Setting) -> int:
        """Bytes of the whole model in a file, without its header."""
        return self.account.other_nbytes + self.landscape.nbytes(setting)

    def compressed(self, tried: Tried) -> nn.Module:
        """The model of a setting."""
        # The values of the file: what is evaluated is what is shipped.
        weights = self.identity.fits.chosen(tried.setting)
        small = round_rest(assemble(self.model, weights), self.identity.rest)
        return self._train(tried, small) if tried.trained else small

    def _train(self, tried: Tried, small: nn.Module) -> nn.Module:
        assert self.trainer is not None
        trained = self.trainer(self.identity.key(tried), small, self.model)
        return round_rest(trained, self.identity.rest)

    def _keep(self, tried: Tried, phase: Phase) -> Outcome:
        setting = tried.setting
        evaluation = self.evaluator.known(self.identity.key(tried))
        assert evaluation is not None
        metric, error = evaluation.metric, evaluation.error
        if metric is not None:
            error = mismatch(self.judge.baseline, metric, "evaluate")
            metric = None if error else metric
        outcome = self.judge.outcome(metric)
        budget, baseline = self.judge.budget, self.judge.baseline
        score, loss, interval = math.nan, math.nan, None
        if metric is not None:
            self.metrics[tried] = metric
            score, loss = metric.mean, budget.loss(baseline.mean, metric.mean)
            interval = loss_interval(budget, baseline, metric)
        self.trials[tried] = Trial(
            schemes={
                other: scheme
                for name, scheme in self.identity.fits.schemes(setting).items()
                for other in self.tied[name]
            },
            nbytes=self.nbytes(setting),
            rate=self.account.float_nbytes / self.nbytes(setting),
            harm=self.landscape.harm(setting),
            score=score,
            loss=loss,
            interval=interval,
            held=outcome.held,
            phase=phase,
            seconds=evaluation.seconds,
            error=error,
        )
        return outcome

    def _known(self, setting: Setting, trained: bool = False) -> bool:
        return self.evaluator.known(self.identity.key(Tried(setting, trained))) is not None

    def _limit_reached(self) -> str | None:
        left = "other settings were left untried"
        if self._smallest() is None:
            untrained = "" if self.trainer is None else " untrained"
            left = f"no setting that holds{untrained} had been found"
        if len(self.trials) >= self.max_trials:
            return f"max_trials={self.max_trials} reached: {left}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return f"timeout reached after {len(self.trials)} trials: {left}"
        return None

    def _best_rate(self) -> str:
        rates = [trial.rate for trial in self.trials.values() if trial.held]
        return f"{max(rates):.1f}x" if rates else "-"

    def _smallest(self) -> Setting | None:
        held = [setting for setting, outcome in self.outcomes.items() if outcome.held]
        return min(held, key=lambda s: (self.nbytes(s), s), default=None)
