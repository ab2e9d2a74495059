"""The search: the smallest model that holds the budget."""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn
from tqdm import tqdm

from vq_plugin.checkpoint import save
from vq_plugin.codebook import CodebookWeight
from vq_plugin.model import Calibration, assemble, owners_of_parameters
from vq_plugin.tuning.allocation import Setting, frontier
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.candidates import Fits, fit_candidates
from vq_plugin.tuning.confidence import Judge
from vq_plugin.tuning.journal import Journal, digest
from vq_plugin.tuning.metric import Metric, loss_interval, mismatch
from vq_plugin.tuning.propose import Landscape, Outcome, Phase, propose
from vq_plugin.tuning.result import FrontierPoint, Trial, TuneResult
from vq_plugin.tuning.space import LADDER, Candidates, search_space
from vq_plugin.tuning.trials import Evaluate, Evaluator

MODEL_FILE = "model.vq"


def tune(
    model: nn.Module,
    evaluate: Evaluate,
    budget: LossBudget | None = None,
    calibration: Calibration | None = None,
    *,
    candidates: Candidates | None = None,
    test: Evaluate | None = None,
    max_trials: int = 25,
    timeout: float | None = None,
    seed: int = 0,
    workers: int = 1,
    backend: str = "loky",
    folder: str | os.PathLike[str] | None = None,
    recipe: Path | None = None,
) -> TuneResult:
    """Finds the smallest model whose loss stays within a budget, layer by layer.

    Every layer is fitted with every candidate scheme once. What each does to the model's output on
    the calibration data predicts its harm, and the lower hull of harm against bytes gives a
    frontier of settings of the whole model. Evaluations find the most aggressive point of it that
    holds the budget, then try smaller settings nearby while trials are left. The model that is
    returned was evaluated itself.

    Args:
        model: Float model; it is not changed.
        evaluate: Gives the metric of a model on the tuning split: a finite number, or one result
            per sample as a bool or float vector, whose mean is the metric.
        budget: The largest acceptable loss; 1 % of the baseline if ``None``. If it asks for a
            confidence, ``evaluate`` must give one result per sample.
        calibration: Unlabelled data, see :func:`vq_plugin.compress`, for the fits and for the
            prediction of harm. Without it the prediction is poor, and a warning says so.
        candidates: The schemes to choose from, see
            :func:`vq_plugin.tuning.space.search_space`: a sequence for all layers, or patterns to
            sequences; ``None`` in a sequence lets a layer stay in float. If ``None``,
            :data:`vq_plugin.tuning.LADDER` for all layers.
        test: As ``evaluate``, on an untouched split; it gives the verdict and chooses nothing.
        max_trials: The most settings to evaluate.
        timeout: Seconds after which no evaluation is begun.
        seed: Seed of the fits.
        workers: Fits and evaluations at a time, each in a process of its own; ``evaluate`` must
            then be picklable. The result does not depend on it. Evaluations that may turn out
            not to be needed are begun ahead; they count neither as trials nor for ``max_trials``.
        backend: What runs them if there are several: any joblib backend, such as ``"loky"``
            (processes on this machine) or ``"dask"`` (the current ``distributed.Client``).
        folder: Where ``model.vq``, ``report.json`` and ``report.html`` are written, and meanwhile
            a journal of the evaluations: a run that was killed goes on from there when it is
            started again. ``None`` keeps everything in memory.
        recipe: The recipe that the run came from, to be quoted in the reports.

    Returns:
        The result. If nothing holds, the float model with ``passed=False``.

    Raises:
        TypeError: If a pattern or a candidate is of the wrong type.
        ValueError: If the float model's metric is not finite, a limit is not positive, a pattern
            of the candidates matches nothing, a layer cannot be compressed, or another run is
            using the folder.

    Example:
        >>> import torch, vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(64, 10), torch.randn(500, 64)
        >>> labels = model(x).argmax(1)
        >>> def correct(m):
        ...     return m(x).argmax(1) == labels
        >>> result = vq.tune(model, correct, vq.LossBudget(absolute=0.1), calibration=[x])
        >>> result.passed, result.loss <= 0.1, result.rate > 4
        (True, True, True)
    """
    start = time.monotonic()
    budget = LossBudget(relative=0.01) if budget is None else budget
    if not isinstance(model, nn.Module) or not isinstance(budget, LossBudget):
        raise TypeError(
            f"tune takes a module, a function and a LossBudget; got {type(model).__name__} and "
            f"{budget!r}"
        )
    _check_limits(max_trials, timeout, workers)
    if isinstance(calibration, Iterable):
        # Read several times, in the same order: a loader may shuffle, a generator runs dry.
        calibration = list(calibration)
    space = search_space(model, LADDER if candidates is None else candidates)
    # The user's functions may change the current folder.
    place = None if folder is None else Path(folder).absolute()
    recipe = None if recipe is None else recipe.absolute()
    with Journal(place) as journal:
        if place is not None:
            # Files of an earlier run must not pass for the result of this one.
            for name in (MODEL_FILE, "report.json", "report.html"):
                (place / name).unlink(missing_ok=True)
        deadline = None if timeout is None else start + timeout
        tuning = Evaluator(evaluate, "evaluate", journal, workers, backend)
        own = digest(
            (key, value) for key, value in model.state_dict().items() if isinstance(value, Tensor)
        )
        judge = Judge(budget, tuning.baseline(model, own))
        testing = None if test is None else Evaluator(test, "test", journal)
        test_baseline = None if testing is None else testing.baseline(model, own)
        if test_baseline is not None:
            # Fails at once, not after the search, if the budget is relative and this is 0.
            budget.loss(test_baseline.mean, test_baseline.mean)
        fits = fit_candidates(
            model, space, calibration, seed=seed, workers=workers, backend=backend
        )
        search = _Search(model, own, fits, judge, tuning, max_trials, deadline)
        search.run()
        result = search.result(testing, test_baseline)
        overhead = time.monotonic() - start - journal.spent
        result = replace(result, search_seconds=max(0.0, overhead), resumed=journal.resumed)
        if place is not None:
            model_path = place / MODEL_FILE if result.passed else None
            if model_path is not None:
                save(result.model, model_path)
            # The schemas of reports take longer to import than all else.
            from vq_plugin.tuning.report import write_report

            write_report(place, result, model_path, recipe=recipe)
        journal.finish()
    return result


@dataclass
class _Search:
    """One search; everything but its trials is fixed from the start."""

    model: nn.Module
    own: str
    fits: Fits
    judge: Judge
    evaluator: Evaluator
    max_trials: int
    deadline: float | None
    cut: str | None = None
    metrics: dict[Setting, Metric] = field(default_factory=dict)
    outcomes: dict[Setting, Outcome] = field(default_factory=dict)
    trials: dict[Setting, Trial] = field(default_factory=dict)

    def __post_init__(self) -> None:
        layers = [ladder.candidates for ladder in self.fits.layers]
        # The float model itself is no answer.
        settings = [s for s in frontier(layers) if any(self.fits.schemes(s).values())]
        self.landscape = Landscape(layers, settings, self.judge.budget.limit)
        state = {id(v): v for v in self.model.state_dict(keep_vars=True).values()}
        tensors = [value for value in state.values() if isinstance(value, Tensor)]
        modules = dict(self.model.named_modules())
        owners = owners_of_parameters(self.model)
        self.tied = {
            ladder.name: owners.get(id(modules[ladder.name].weight), [ladder.name])
            for ladder in self.fits.layers
        }
        # Pruning and the like keep a weight in parts: weight_orig, weight_mask.
        own = {
            id(value): int(value.nbytes)
            for ladder in self.fits.layers
            for key, value in modules[ladder.name].state_dict(keep_vars=True).items()
            if key.startswith("weight")
        }
        self.others = sum(value.nbytes for value in tensors) - sum(own.values())
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
                if self.evaluator.known(self._key(setting)) is None:
                    wanted = self._ahead(setting)
                    self.evaluator.run({self._key(s): self._assemble(s) for s in wanted})
                self._keep(setting, phase)
                best = self._smallest(self.outcomes)
                bar.set_postfix(rate="-" if best is None else f"{self.trials[best].rate:.1f}x")
                bar.update()

    def result(self, test: Evaluator | None, test_baseline: Metric | None) -> TuneResult:
        """The verdict; the test split decides where there is one."""
        held = {s: self.metrics[s] for s, outcome in self.outcomes.items() if outcome.held}
        sure = self.judge.confirmed(held)
        for setting in held:
            if setting not in sure:
                self.trials[setting] = replace(self.trials[setting], held=False)
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
        )
        if not sure:
            return replace(result, stopped=self._why_not(bool(held)))
        best = min(sure, key=lambda setting: (self._nbytes(setting), setting))
        stopped = None
        if test is not None and test_baseline is not None:
            tested, stopped = self._test(best, test, test_baseline)
            result = replace(result, **tested)
        if stopped:
            return replace(result, stopped=stopped)
        trial = self.trials[best]
        return replace(
            result,
            model=self._assemble(best),
            schemes=dict(trial.schemes),
            passed=True,
            score=trial.score,
            loss=trial.loss,
            interval=trial.interval,
            rate=trial.rate,
        )

    def _test(
        self, best: Setting, test: Evaluator, baseline: Metric
    ) -> tuple[dict[str, Any], str | None]:
        budget = self.judge.budget
        key = self._key(best)
        if test.known(key) is None:
            test.run({key: self._assemble(best)})
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

    def _keep(self, setting: Setting, phase: Phase) -> None:
        evaluation = self.evaluator.known(self._key(setting))
        assert evaluation is not None
        metric, error = evaluation.metric, evaluation.error
        if metric is not None:
            error = mismatch(self.judge.baseline, metric, "evaluate")
            metric = None if error else metric
        outcome = self.judge.outcome(metric)
        budget, baseline = self.judge.budget, self.judge.baseline
        self.outcomes[setting] = outcome
        if metric is not None:
            self.metrics[setting] = metric
        self.trials[setting] = Trial(
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

    def _ahead(self, setting: Setting) -> list[Setting]:
        """The setting, and what would be asked next however it turns out, one for every worker."""
        wanted = [setting]
        imagined = deque([dict(self.outcomes)])
        while len(wanted) < self.evaluator.workers and imagined:
            outcomes = imagined.popleft()
            proposal = propose(self.landscape, outcomes)
            if proposal is None:
                continue
            asked = proposal.setting
            if asked not in wanted and self.evaluator.known(self._key(asked)) is None:
                wanted.append(asked)
            for part, held in ((1.2, False), (0.8, True)):
                level = part * self.landscape.limit
                imagined.append({**outcomes, asked: Outcome(level, held)})
        return wanted

    def _limit_reached(self) -> str | None:
        left = "smaller settings nearby were left untried"
        if self._smallest(self.outcomes) is None:
            left = "no setting that holds had been found"
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

    def _smallest(self, outcomes: Mapping[Setting, Outcome]) -> Setting | None:
        held = [setting for setting, outcome in outcomes.items() if outcome.held]
        return min(held, key=lambda s: (self._nbytes(s), s), default=None)

    def _nbytes(self, setting: Setting) -> int:
        return self.others + self.landscape.nbytes(setting)

    def _assemble(self, setting: Setting) -> nn.Module:
        return assemble(self.model, self.fits.chosen(setting))

    def _key(self, setting: Setting) -> str:
        """Names the model that the setting gives, whatever led to it."""
        parts = {
            name: scheme and self.digests[name, scheme]
            for name, scheme in self.fits.schemes(setting).items()
        }
        return hashlib.sha256(json.dumps([self.own, parts]).encode()).hexdigest()[:16]


def _tensors(small: CodebookWeight) -> list[tuple[str, Tensor]]:
    parts = {"codes": small.codes, "codebooks": small.codebooks, "scale": small.scale}
    return [(name, value) for name, value in parts.items() if value is not None]


def _check_limits(max_trials: int, timeout: float | None, workers: int) -> None:
    for name, value in (("max_trials", max_trials), ("timeout", timeout), ("workers", workers)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")
