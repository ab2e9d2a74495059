"""One search, from its fits to its verdict."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NamedTuple

from torch import Tensor, nn
from tqdm import tqdm

from vq_plugin.checkpoint import Rest, round_rest, stored_rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.replace import assemble
from vq_plugin.select import slots_by_name
from vq_plugin.ties import sharing
from vq_plugin.tuning.allocation import Setting, frontier
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.journal import digest
from vq_plugin.tuning.metric import Metric, loss_interval, mismatch
from vq_plugin.tuning.propose import Landscape, Outcome, Phase, ahead, propose
from vq_plugin.tuning.recovery import Trainer, next_to_train
from vq_plugin.tuning.result import FrontierPoint, Trial, TuneResult
from vq_plugin.tuning.trials import Evaluator


class Tried(NamedTuple):
    """A setting as it was fitted, or trained after that."""

    setting: Setting
    trained: bool = False


@dataclass
class Session:
    """One search; everything but its trials is fixed from the start."""

    model: nn.Module
    own: str
    fits: Fits
    judge: Judge
    evaluator: Evaluator
    max_trials: int
    deadline: float | None
    trainer: Trainer | None = None
    rest: Rest | None = None
    cut: str | None = None
    metrics: dict[Tried, Metric] = field(default_factory=dict)
    outcomes: dict[Setting, Outcome] = field(default_factory=dict)
    trials: dict[Tried, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = [ladder.candidates for ladder in self.fits.layers]
        # The float model itself is no answer.
        settings = [s for s in frontier(layers) if any(self.fits.schemes(s).values())]
        self.landscape = Landscape(layers, settings, self.judge.budget.limit)
        state = {id(v): v for v in self.model.state_dict(keep_vars=True).values()}
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        owners = sharing(self.model)
        names = [ladder.name for ladder in self.fits.layers]
        self.tied = {name: [slot.name for slot in owners[name]] for name in names}
        slots = slots_by_name(self.model, names).values()
        own = {id(value) for slot in slots for value in slot.tensors}
        self.others = sum(stored_rest(v, self.rest).nbytes for v in tensors if id(v) not in own)
        self.float_nbytes = sum(
            4 * v.numel() if v.is_floating_point() else v.nbytes for v in tensors
        )
        self.digests = {
            key: f"{key[1]} {digest(_tensors(small))}" for key, small in self.fits.weights.items()
        }

    def run(self) -> None:
        """Evaluates until nothing is left to try, or a limit is reached."""
        with tqdm(total=self.max_trials, desc="tune", unit="trial", disable=None) as bar:
            while (proposal := propose(self.landscape, self.outcomes)) is not None:
                self.cut = self._limit_reached()
                if self.cut:
                    return
                setting, phase = proposal
                if self.evaluator.known(self._key(Tried(setting))) is None:
                    wanted = map(Tried, self._ahead())
                    self.evaluator.run({self._key(t): self._model(t) for t in wanted})
                self.outcomes[setting] = self._keep(Tried(setting), phase)
                bar.set_postfix(rate=self._best_rate())
                bar.update()

    def recover(self) -> None:
        """Trains settings that are past the budget and evaluates them, one after the other."""
        assert self.trainer is not None
        most = self.trainer.recovery.max_trials
        found: dict[Setting, bool] = {}
        best = self._smallest(self.outcomes)
        size = math.inf if best is None else self.landscape.nbytes(best)
        with tqdm(total=most, desc="recovery", unit="trial", disable=None) as bar:
            while (setting := next_to_train(self.landscape, size, found)) is not None:
                late = self.deadline is not None and time.monotonic() >= self.deadline
                if late or len(found) >= most:
                    limit = "timeout" if late else f"recovery's max_trials={most}"
                    cut = f"{limit} reached after {len(found)} trained settings: others were left"
                    self.cut = "; ".join(filter(None, [self.cut, cut]))
                    return
                tried = Tried(setting, trained=True)
                if self.evaluator.known(self._key(tried)) is None:
                    self.evaluator.run_after(
                        partial(self._train, tried),
                        self._key(tried),
                        self._model(Tried(setting)),
                    )
                found[setting] = self._keep(tried, "recovery").held
                bar.set_postfix(rate=self._best_rate())
                bar.update()

    def result(self, test: Evaluator | None, test_baseline: Metric | None) -> TuneResult:
        """The verdict; the test split decides where there is one."""
        likely = any(trial.held for trial in self.trials.values())
        sizes = {tried: self._nbytes(tried.setting) for tried in self.metrics}
        sure = self.judge.confirmed(self.metrics, sizes)
        for tried, trial in self.trials.items():
            self.trials[tried] = replace(trial, held=tried in sure)
        result = TuneResult(
            model=self.model,
            schemes=None,
            passed=False,
            baseline=self.judge.baseline.mean,
            score=self.judge.baseline.mean,
            loss=0.0,
            interval=None,
            rate=1.0,
            trials=tuple(self.trials.values()),
            layers=self.fits.layers,
            frontier=tuple(
                FrontierPoint(self._nbytes(s), self.landscape.harm(s))
                for s in self.landscape.frontier
            ),
            budget=self.judge.budget,
            test_baseline=None if test_baseline is None else test_baseline.mean,
            cut=self.cut,
            rest=self.rest,
        )
        if not sure:
            return replace(result, stopped=self._why_not(likely))
        best = min(sure, key=lambda tried: (self._nbytes(tried.setting), tried))
        stopped = None
        if test is not None and test_baseline is not None:
            tested, stopped = self._test(best, test, test_baseline)
            result = replace(result, **tested)
        if stopped:
            return replace(result, stopped=stopped)
        trial = self.trials[best]
        return replace(
            result,
            model=self._model(best),
            schemes=dict(trial.schemes),
            passed=True,
            score=trial.score,
            loss=trial.loss,
            interval=trial.interval,
            rate=trial.rate,
        )

    def _test(
        self, best: Tried, test: Evaluator, baseline: Metric
    ) -> tuple[dict[str, Any], str | None]:
        budget = self.judge.budget
        key = self._key(best)
        if test.known(key) is None:
            test.run({key: self._model(best)})
        found = test.known(key)
        assert found is not None
        error = found.error
        if found.metric is not None:
            error = mismatch(baseline, found.metric, "test")
        if error is not None or found.metric is None:
            return {}, f"the evaluation on the test split failed: {error}"
        score = found.metric.mean
        tested = {
            "test_score": score,
            "test_loss": budget.loss(baseline.mean, score),
            "test_interval": loss_interval(budget, baseline, found.metric),
        }
        if budget.holds(baseline.mean, score):
            return tested, None
        remedy = (
            "set a confidence and let evaluate return one result per sample, so that chance is "
            "accounted for"
            if budget.confidence is None
            else "tune on more samples, or on some that are more like the test split"
        )
        return tested, (
            "the setting that held on the tuning split does not hold on the test split, which "
            f"decides; {remedy}"
        )

    def _keep(self, tried: Tried, phase: Phase) -> Outcome:
        setting = tried.setting
        evaluation = self.evaluator.known(self._key(tried))
        assert evaluation is not None
        metric, error = evaluation.metric, evaluation.error
        if metric is not None:
            error = mismatch(self.judge.baseline, metric, "evaluate")
            metric = None if error else metric
        outcome = self.judge.outcome(metric)
        budget, baseline = self.judge.budget, self.judge.baseline
        if metric is not None:
            self.metrics[tried] = metric
        self.trials[tried] = Trial(
            schemes={
                other: scheme
                for name, scheme in self.fits.schemes(setting).items()
                for other in self.tied[name]
            },
            nbytes=self._nbytes(setting),
            rate=self.float_nbytes / self._nbytes(setting),
            harm=self.landscape.harm(setting),
            score=math.nan if metric is None else metric.mean,
            loss=math.nan if metric is None else budget.loss(baseline.mean, metric.mean),
            interval=None if metric is None else loss_interval(budget, baseline, metric),
            held=outcome.held,
            phase=phase,
            seconds=evaluation.seconds,
            error=error,
        )
        return outcome

    def _ahead(self) -> list[Setting]:
        """What is asked for, and what will probably be asked next, one for every worker."""

        def known(setting: Setting) -> bool:
            return self.evaluator.known(self._key(Tried(setting))) is not None

        return ahead(self.landscape, self.outcomes, self.evaluator.workers, known)

    def _limit_reached(self) -> str | None:
        left = "other settings were left untried"
        if self._smallest(self.outcomes) is None:
            untrained = "" if self.trainer is None else " untrained"
            left = f"no setting that holds{untrained} had been found"
        if len(self.trials) >= self.max_trials:
            return f"max_trials={self.max_trials} reached: {left}"
        if self.deadline is not None and time.monotonic() >= self.deadline:
            return f"timeout reached after {len(self.trials)} trials: {left}"
        return None

    def _why_not(self, unconfirmed: bool) -> str:
        if unconfirmed:
            return (
                "no setting that held on the samples of the search was confirmed by the others: "
                "tune on more samples"
            )
        if self.cut:
            return self.cut
        errors = [trial.error for trial in self.trials.values() if trial.error is not None]
        if errors and len(errors) == len(self.trials):
            return f"all {len(errors)} evaluations failed, the last with {errors[-1]}"
        if not self.trials:
            return "no setting was tried: every candidate makes the model's outputs infinite or NaN"
        if any(trial.loss <= self.judge.budget.limit for trial in self.trials.values()):
            return (
                "losses are within the budget, but not for sure with these samples: tune on more, "
                "or allow a larger loss"
            )
        return "no setting of the frontier holds the budget on the tuning split"

    def _best_rate(self) -> str:
        rates = [trial.rate for trial in self.trials.values() if trial.held]
        return f"{max(rates):.1f}x" if rates else "-"

    def _smallest(self, outcomes: Mapping[Setting, Outcome]) -> Setting | None:
        held = [setting for setting, outcome in outcomes.items() if outcome.held]
        return min(held, key=lambda s: (self._nbytes(s), s), default=None)

    def _nbytes(self, setting: Setting) -> int:
        return self.others + self.landscape.nbytes(setting)

    def _model(self, tried: Tried) -> nn.Module:
        # The values of the file: what is evaluated is what is shipped.
        small = round_rest(assemble(self.model, self.fits.chosen(tried.setting)), self.rest)
        return self._train(tried, small) if tried.trained else small

    def _train(self, tried: Tried, small: nn.Module) -> nn.Module:
        assert self.trainer is not None
        return round_rest(self.trainer(self._key(tried), small, self.model), self.rest)

    def _key(self, tried: Tried) -> str:
        """Names the model, whatever led to it."""
        parts: list[object] = [self.own]
        parts.append(
            {
                name: scheme and self.digests[name, scheme]
                for name, scheme in self.fits.schemes(tried.setting).items()
            }
        )
        if tried.trained:
            assert self.trainer is not None
            parts.append(self.trainer.settings)
        if self.rest is not None:
            parts.append(self.rest)
        return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:16]


def _tensors(small: CodebookWeight) -> list[tuple[str, Tensor]]:
    parts = {
        "codes": small.codes,
        "codebooks": small.codebooks,
        "scale": small.scale,
        "bias_shift": small.bias_shift,
    }
    return [(name, value) for name, value in parts.items() if value is not None]
