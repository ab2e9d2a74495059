"""A look at the metric that INC's ``autotune`` goes by."""

from __future__ import annotations

import inspect
import logging
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from vq_plugin.calibration import Calibration
from vq_plugin.replace import assemble
from vq_plugin.tuning import LossBudget
from vq_plugin.tuning.agreement import Agreement, of_evaluation
from vq_plugin.tuning.direction import Direction
from vq_plugin.tuning.metric import Metric, check_repeats, read_metric
from vq_plugin.tuning.probe import Measure, Probe
from vq_plugin.tuning.sight import Sight
from vq_plugin.tuning.trials import Evaluate, evaluate_once

_log = logging.getLogger(__name__)


@dataclass
class Gate:
    """What :func:`vq_plugin.tune` asks of a metric, of one ``autotune`` after the other.

    INC tells its tolerance neither the models nor the function: they are read from its call.
    """

    budget: LossBudget
    calibration: Calibration | None = None
    _asked: tuple[Direction, Sight] | None = field(default=None, init=False)
    _agreement: Agreement | None = field(default=None, init=False)
    _agreeing: object = field(default=None, init=False)

    def check(self, baseline: float, score: float) -> None:
        """Raises ValueError where a compressed model has that metric, and it means nothing."""
        running = _running()
        if running is None:
            _log.warning("this version of INC does not show what it evaluates: nothing is checked")
            return
        evaluate: Evaluate = running["eval_func_wrapper"].evaluate
        probe = Probe(running["model"], self.budget, baseline, _measure(evaluate))
        asked = self._asked
        if asked is None or (asked[0].probe.model, asked[0].probe.baseline) != (
            probe.model,
            baseline,
        ):
            again = read_metric(evaluate(assemble(probe.model, {})), "eval_fn")
            check_repeats(self.budget, "eval_fn", Metric(baseline), Metric(again.mean))
            asked = self._asked = Direction(probe), Sight(probe)
            if self.calibration is not None:
                self._agreement = Agreement(probe.model, self.calibration)
        direction, sight = asked
        gain = -self.budget.loss(baseline, score)
        if gain > self.budget.limit and (found := direction.wrong(gain)) is not None:
            raise ValueError(
                f"by eval_fn {found}: INC takes metrics that grow as the model gets better, so "
                "return another, such as an accuracy in place of an error or a loss; or use "
                "vq-plugin tune with higher_is_better=False"
            )
        if gain >= -self.budget.limit and self._agreeing is not running["q_model"]:
            self._check_agreement(sight, running["q_model"], evaluate)

    def _check_agreement(self, sight: Sight, model: nn.Module, evaluate: Evaluate) -> None:
        calibrated = self._agreement is not None
        if self._agreement is not None:
            found = self._agreement(model)
        else:
            found = of_evaluation(sight.probe.model, evaluate, model)
        if (doubt := sight.doubt(found, "eval_fn", calibrated=calibrated)) is not None:
            # Were it only refused, INC would return it for its score.
            raise ValueError(doubt)
        self._agreeing = model


def check_baseline() -> None:
    """Raises ValueError where an ``autotune`` goes on whose metric is no number."""
    running = _running()
    if running is not None:
        finite("float model", running["baseline"])


def finite(what: str, metric: Any) -> float:
    """A metric of INC as a number; ValueError if it is none."""
    try:
        if isinstance(metric, str | bytes):
            # Of one that is a number INC's own log fails to make one.
            raise TypeError
        value = float(metric)
    except (TypeError, ValueError, RuntimeError):
        shape = getattr(metric, "shape", None)
        shown = repr(metric) if shape is None else f"values of shape {tuple(shape)}"
        raise ValueError(
            f"eval_fn returned {shown} for the {what}; it must return a number, such as the mean "
            "of predictions == labels"
        ) from None
    if not math.isfinite(value):
        raise ValueError(f"eval_fn returned {value} for the {what}: a metric must be finite")
    return value


def _measure(evaluate: Evaluate) -> Measure:
    def measure(_: str, make: Callable[[], nn.Module]) -> float | None:
        return getattr(evaluate_once(evaluate, make(), "eval_fn").metric, "mean", None)

    return measure


def _running() -> dict[str, Any] | None:
    """The variables of the ``autotune`` that is going on."""
    frame = inspect.currentframe()
    while frame is not None:
        if frame.f_code.co_name == "autotune" and "eval_func_wrapper" in frame.f_locals:
            return frame.f_locals
        frame = frame.f_back
    return None
