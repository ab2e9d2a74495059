"""From what a search tried to its result; the test split decides where there is one."""

from __future__ import annotations

import logging
from dataclasses import replace
from typing import Any

from torch import nn

from vq_plugin.left_float import left_float
from vq_plugin.tuning.agreement import of_evaluation
from vq_plugin.tuning.identity import Tried
from vq_plugin.tuning.metric import Metric, loss_interval, mismatch
from vq_plugin.tuning.result import FrontierPoint, TuneResult
from vq_plugin.tuning.session import Session
from vq_plugin.tuning.trials import Evaluator

_log = logging.getLogger(__name__)


def verdict(session: Session, test: Evaluator | None, test_baseline: Metric | None) -> TuneResult:
    """The result of a search that has ended, without the times of the run."""
    likely = any(trial.held for trial in session.trials.values())
    sizes = {tried: session.trials[tried].nbytes for tried in session.metrics}
    sure = session.judge.confirmed(session.metrics, sizes)
    trials = {tried: replace(trial, held=tried in sure) for tried, trial in session.trials.items()}
    baseline = session.judge.baseline.mean
    result = TuneResult(
        model=session.model,
        schemes=None,
        passed=False,
        baseline=baseline,
        score=baseline,
        loss=0.0,
        interval=None,
        rate=1.0,
        trials=tuple(trials.values()),
        layers=session.fits.ladders(session.asked),
        frontier=_frontier(session),
        budget=session.judge.asked,
        test_baseline=None if test_baseline is None else test_baseline.mean,
        cut=session.cut,
        rest=session.identity.rest,
    )
    if not sure:
        return replace(result, stopped=_why_not(result, likely))
    best = min(sure, key=lambda tried: (sizes[tried], tried))
    gain = -trials[best].loss
    if gain > result.budget.limit:
        session.direction.check(gain)
    if test is not None and test_baseline is not None:
        tested = _test(session, best, test, test_baseline)
        result = replace(result, **tested)
    if result.stopped:
        return result
    trial, small = trials[best], session.compressed(best)
    found = _agreement(session, small)
    result = replace(result, agreement=found)
    calibrated = session.agreement is not None
    if (doubt := session.sight.doubt(found, calibrated=calibrated)) is not None:
        return replace(result, stopped=doubt)
    if gain > result.budget.limit and session.direction.better is None and session.sight.blind:
        _log.warning(
            "by evaluate the compressed model is better than the float model by %.4g, and whether "
            "higher_is_better=%s is right cannot be told: what ruins a model changes nothing that "
            "it sees",
            gain,
            session.judge.budget.higher_is_better,
        )
    return replace(
        result,
        model=small,
        schemes=dict(trial.schemes),
        passed=True,
        score=trial.score,
        loss=trial.loss,
        interval=trial.interval,
        rate=trial.rate,
        left_float=left_float(small),
    )


def _agreement(session: Session, small: nn.Module) -> float | None:
    """How far outputs agree."""
    if session.agreement is not None:
        return session.agreement(small)
    # There is time for one evaluation more.
    if session.deadline.passed:
        return None
    return of_evaluation(session.model, session.evaluator.function, small)


def _frontier(session: Session) -> tuple[FrontierPoint, ...]:
    """As it was in the end, and where the search has looked for it on the way."""
    landscape, other = session.landscape, session.account.other_nbytes
    asked = {t.setting for t, trial in session.trials.items() if trial.phase == "frontier"}
    points = {
        FrontierPoint(other + landscape.nbytes(setting), landscape.harm(setting))
        for setting in asked.union(landscape.frontier)
    }
    return tuple(sorted(points, key=lambda point: (-point.nbytes, point.harm)))


def _test(session: Session, best: Tried, test: Evaluator, baseline: Metric) -> dict[str, Any]:
    """What the test split says of the best setting, as fields of the result."""
    budget, key = session.judge.asked, session.identity.key(best)
    if test.known(key) is None:
        test.run({key: session.compressed(best)})
    evaluation = test.known(key)
    assert evaluation is not None
    metric, error = evaluation.metric, evaluation.error
    if metric is not None:
        error = mismatch(baseline, metric, "test")
    if error is not None or metric is None:
        return {"stopped": f"the evaluation on the test split failed: {error}"}
    tested: dict[str, Any] = {
        "test_score": metric.mean,
        "test_loss": budget.loss(baseline.mean, metric.mean),
        "test_interval": loss_interval(budget, baseline, metric),
    }
    if budget.holds(baseline.mean, metric.mean):
        return tested
    remedy = (
        "set a confidence and let evaluate return one result per sample, so that chance is "
        "accounted for, or set a margin, or a larger one, if that cannot be"
        if budget.confidence is None
        else "tune on more samples, or on some that are more like the test split"
    )
    stopped = (
        "the setting that held on the tuning split does not hold on the test split, which "
        f"decides; {remedy}"
    )
    return {**tested, "stopped": stopped}


def _why_not(result: TuneResult, unconfirmed: bool) -> str:
    if unconfirmed:
        return (
            "no setting that held on the samples of the search was confirmed by the others: "
            "tune on more samples"
        )
    if result.cut:
        return result.cut
    errors = [trial.error for trial in result.trials if trial.error is not None]
    if errors and len(errors) == len(result.trials):
        return f"all {len(errors)} evaluations failed, the last with {errors[-1]}"
    if not result.trials:
        return "no setting was tried"
    if result.budget.margin and any(t.loss <= result.budget.limit for t in result.trials):
        return "losses are within the budget, but not by its margin"
    if any(trial.loss <= result.budget.limit for trial in result.trials):
        return (
            "losses are within the budget, but not for sure with these samples: tune on more, "
            "or allow a larger loss"
        )
    return "no setting of the frontier holds the budget on the tuning split"
