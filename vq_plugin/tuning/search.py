"""The search: the smallest setting that holds the budget."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from torch import nn
from tqdm import tqdm

from vq_plugin.model import Calibration, compress
from vq_plugin.select import Schemes
from vq_plugin.summary import Summary, summary
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.candidates import LADDER, model_nbytes

Evaluate = Callable[[nn.Module], float]


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Attributes:
        schemes: The setting.
        rate: Float32 bytes of the whole model over its compressed bytes; NaN if the fit failed.
        score: The metric on the tuning split; NaN if the trial failed.
        loss: Its loss in the budget's unit; NaN if the trial failed.
        held: Whether it is within the budget.
        seconds: Time of the fit and the evaluation.
        error: Why the trial failed, or ``None``.
    """

    schemes: Schemes
    rate: float
    score: float
    loss: float
    held: bool
    seconds: float
    error: str | None = None


@dataclass(frozen=True)
class TuneResult:
    """What a search came to.

    Attributes:
        model: The compressed model; the float model itself if ``passed`` is false.
        schemes: Its setting, or ``None``.
        passed: Whether a setting holds the budget, on the test split too where there is one.
        baseline: The float model's metric on the tuning split.
        score: The metric of ``model`` on the tuning split.
        loss: Its loss there, in the budget's unit.
        rate: Float32 bytes of the whole model over its compressed bytes.
        trials: All settings that were tried, in order.
        budget: The budget.
        test_baseline: The float model's metric on the untouched test split, if there is one.
        test_score: The metric there of the setting that held on the tuning split.
        test_loss: Its loss there.
        stopped: Why the budget was not reached, or ``None``.
    """

    model: nn.Module
    schemes: Schemes | None
    passed: bool
    baseline: float
    score: float
    loss: float
    rate: float
    trials: tuple[Trial, ...]
    budget: LossBudget
    test_baseline: float | None = None
    test_score: float | None = None
    test_loss: float | None = None
    stopped: str | None = None


def tune(
    model: nn.Module,
    evaluate: Evaluate,
    budget: LossBudget | None = None,
    calibration: Calibration | None = None,
    *,
    candidates: Sequence[Schemes] | None = None,
    test: Evaluate | None = None,
    max_trials: int | None = None,
    timeout: float | None = None,
    seed: int = 0,
) -> TuneResult:
    """Finds the smallest setting whose loss stays within a budget.

    Settings are tried in ascending order of their size and the first that holds is taken; then
    ``test`` gives the verdict on data that the search did not see.

    Args:
        model: Float model; it is not changed.
        evaluate: Gives the metric of a model on the tuning split, a finite number.
        budget: The largest acceptable loss; 1 % of the baseline if ``None``.
        calibration: Unlabelled data for the fits, see :func:`vq_plugin.compress`. Give something
            that can be iterated again and again, such as a list.
        candidates: Settings to choose from, each as in :func:`vq_plugin.compress`; if ``None``
            :data:`vq_plugin.tuning.LADDER`, each scheme for all layers.
        test: Gives the metric on an untouched split.
        max_trials: The most settings to try.
        timeout: Seconds after which no new setting is tried.
        seed: Seed of the fits.

    Returns:
        The result. If nothing holds, the float model with ``passed=False``.

    Raises:
        ValueError: If the metric of the float model is not a finite number, a limit is not
            positive, or a pattern of a candidate matches nothing.

    Example:
        >>> import torch, vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model, x = nn.Linear(64, 10), torch.randn(500, 64)
        >>> labels = model(x).argmax(1)
        >>> def accuracy(m):
        ...     return (m(x).argmax(1) == labels).float().mean().item()
        >>> result = vq.tune(model, accuracy, vq.LossBudget(absolute=0.1))
        >>> result.passed, result.loss <= 0.1, result.rate > 2
        (True, True, True)
    """
    budget = budget or LossBudget(relative=0.01)
    _check_limits(max_trials, timeout)
    settings: list[Schemes] = list(LADDER if candidates is None else candidates)
    if not settings:
        raise ValueError("candidates is empty: give at least one setting")
    settings.sort(key=lambda setting: model_nbytes(model, setting))
    baseline = _baseline(model, evaluate, budget, "evaluate")
    test_baseline = None if test is None else _baseline(model, test, budget, "test")

    start = time.monotonic()
    trials: list[Trial] = []
    stopped = None
    with tqdm(total=len(settings), desc="tune", unit="trial", disable=None) as bar:
        for setting in settings:
            stopped = _limit_reached(trials, start, max_trials, timeout, len(settings))
            if stopped:
                break
            small, trial = _try(model, setting, evaluate, budget, baseline, calibration, seed)
            trials.append(trial)
            bar.set_postfix(rate=f"{trial.rate:.1f}x", loss=f"{trial.loss:.4f}")
            bar.update()
            if small is not None and trial.held:
                return _verdict(model, small, trials, baseline, budget, test, test_baseline)
    return _not_reached(
        model,
        trials,
        baseline,
        budget,
        stopped or "no setting holds the budget on the tuning split",
        test_baseline,
    )


def _verdict(
    model: nn.Module,
    small: nn.Module,
    trials: Sequence[Trial],
    baseline: float,
    budget: LossBudget,
    test: Evaluate | None,
    test_baseline: float | None,
) -> TuneResult:
    """The result for the last trial, which held: the test split decides where there is one."""
    chosen = trials[-1]
    test_score = test_loss = None
    if test is not None and test_baseline is not None:
        test_score, error = _score(small, test, "test")
        test_loss = budget.loss(test_baseline, test_score)
        if not budget.holds(test_baseline, test_score):
            reason = error or (
                "the setting that held on the tuning split does not hold on the test split, "
                "which decides"
            )
            return _not_reached(
                model, trials, baseline, budget, reason, test_baseline, test_score, test_loss
            )
    return TuneResult(
        model=small,
        schemes=chosen.schemes,
        passed=True,
        baseline=baseline,
        score=chosen.score,
        loss=chosen.loss,
        rate=chosen.rate,
        trials=tuple(trials),
        budget=budget,
        test_baseline=test_baseline,
        test_score=test_score,
        test_loss=test_loss,
    )


def _not_reached(
    model: nn.Module,
    trials: Sequence[Trial],
    baseline: float,
    budget: LossBudget,
    reason: str,
    test_baseline: float | None,
    test_score: float | None = None,
    test_loss: float | None = None,
) -> TuneResult:
    return TuneResult(
        model=model,
        schemes=None,
        passed=False,
        baseline=baseline,
        score=baseline,
        loss=0.0,
        rate=1.0,
        trials=tuple(trials),
        budget=budget,
        test_baseline=test_baseline,
        test_score=test_score,
        test_loss=test_loss,
        stopped=reason,
    )


def _try(
    model: nn.Module,
    setting: Schemes,
    evaluate: Evaluate,
    budget: LossBudget,
    baseline: float,
    calibration: Calibration | None,
    seed: int,
) -> tuple[nn.Module | None, Trial]:
    start = time.monotonic()
    rate, score = math.nan, math.nan
    small, error = None, None
    try:
        small = compress(model, setting, calibration, seed)
    except ValueError as problem:
        error = str(problem)
    else:
        rate = _rate(summary(small))
        score, error = _score(small, evaluate, "evaluate")
    trial = Trial(
        schemes=setting,
        rate=rate,
        score=score,
        loss=budget.loss(baseline, score),
        held=budget.holds(baseline, score),
        seconds=time.monotonic() - start,
        error=error,
    )
    return small, trial


def _score(small: nn.Module, evaluate: Evaluate, name: str) -> tuple[float, str | None]:
    """The metric, or NaN and why there is none."""
    try:
        score = float(evaluate(small))
    except Exception as problem:  # noqa: BLE001 - the user's code may raise anything; the run goes on
        return math.nan, f"{type(problem).__name__}: {problem}"
    if not math.isfinite(score):
        return math.nan, f"{name} returned {score}"
    return score, None


def _rate(sizes: Summary) -> float:
    return (sizes.float_nbytes + sizes.other_float_nbytes) / (sizes.nbytes + sizes.other_nbytes)


def _baseline(model: nn.Module, evaluate: Evaluate, budget: LossBudget, name: str) -> float:
    score = float(evaluate(model))
    if not math.isfinite(score):
        raise ValueError(f"{name} returned {score} for the float model; it must be a finite number")
    budget.loss(score, score)
    return score


def _check_limits(max_trials: int | None, timeout: float | None) -> None:
    for name, value in (("max_trials", max_trials), ("timeout", timeout)):
        if value is not None and not value > 0:
            raise ValueError(f"{name} must be above 0, got {value!r}")


def _limit_reached(
    trials: Sequence[Trial],
    start: float,
    max_trials: int | None,
    timeout: float | None,
    available: int,
) -> str | None:
    left = available - len(trials)
    if max_trials is not None and len(trials) >= max_trials:
        return f"max_trials={max_trials} reached, {left} settings untried"
    if timeout is not None and time.monotonic() - start >= timeout:
        return f"timeout={timeout:g} s reached, {left} settings untried"
    return None
