"""Calls of the user's functions: timed, journaled, here or on other machines."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import nn

from vq_plugin.raised import raised
from vq_plugin.replace import assemble
from vq_plugin.swallowed import raise_swallowed
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.journal import Evaluation, Journal
from vq_plugin.tuning.metric import Metric, check_repeats, read_metric
from vq_plugin.tuning.orphans import EndsWithItsCaller
from vq_plugin.tuning.shipped import Shipped

# One number, or one result per sample as a vector.
Evaluate = Callable[[nn.Module], object]


class BaselineError(ValueError):
    """The user's function of that ``name`` gives no metric of the float model."""

    def __init__(self, name: str, reason: str) -> None:
        super().__init__(f"{name} of the float model: {reason}")
        self.name, self.reason = name, reason


@dataclass(frozen=True)
class Evaluator:
    """One of the user's functions with the journal of its results.

    Its name, ``"evaluate"`` or ``"test"``, is for messages and for the journal. ``backend`` is
    joblib's name of what runs several evaluations at a time. Where models are ``shipped`` by a
    host, the function is given what the host makes of them, the float model aside.
    """

    function: Evaluate
    name: str
    journal: Journal
    workers: int = 1
    backend: str = "loky"
    shipped: Shipped | None = None

    def baseline(self, model: nn.Module, key: str) -> Metric:
        """The float model's metric; BaselineError if it is not finite, or the function raises."""
        known = self.journal.get(self._key(key))
        if known is not None and known.metric is not None:
            return known.metric
        start = time.monotonic()
        try:
            # A copy, as all models that the function gets: it may do with them what it likes.
            metric = _call(self.function, assemble(model, {}), self.name)
        except ValueError as error:
            raise BaselineError(self.name, str(error)) from error
        self.journal.add(self._key(key), Evaluation(metric, time.monotonic() - start))
        return metric

    def check_repeats(self, model: nn.Module, key: str, budget: LossBudget) -> None:
        """Raises ValueError where a second call of the float model says something else."""
        first, second = self.baseline(model, key), self.baseline(model, f"{key} again")
        check_repeats(budget, self.name, first, second)

    def float_score(self, key: str, what: str, make: Callable[[], nn.Module]) -> float | None:
        """The metric of what ``make`` makes of the float model; ``None`` if it fails."""
        name = f"{key} {what}"
        if self.known(name) is None:
            self.journal.add(self._key(name), evaluate_once(self.function, make(), self.name))
        found = self.known(name)
        return None if found is None or found.metric is None else found.metric.mean

    def known(self, key: str) -> Evaluation | None:
        """What the journal has of a model."""
        return self.journal.get(self._key(key))

    def resumed(self, key: str) -> bool:
        """Whether an earlier run evaluated a model."""
        return self._key(key) in self.journal.found

    def run(self, models: Mapping[str, nn.Module]) -> None:
        """Evaluates models by their keys, several at a time; the journal has the results."""
        if self.workers == 1:
            for key, model in models.items():
                self.journal.add(self._key(key), evaluate_once(self._evaluate, model, self.name))
            return
        import joblib

        with joblib.parallel_config(backend=self.backend, n_jobs=self.workers):
            calls = [
                joblib.delayed(EndsWithItsCaller(evaluate_once))(self._evaluate, model, self.name)
                for model in models.values()
            ]
            results = joblib.Parallel(return_as="generator")(calls)
            for key, result in zip(models, results, strict=True):
                self.journal.add(self._key(key), result)

    def run_after(self, step: Callable[[nn.Module], nn.Module], key: str, model: nn.Module) -> None:
        """Evaluates what ``step`` makes of a model, in this process; its time and errors count."""
        found = evaluate_once(lambda before: self._evaluate(step(before)), model, self.name)
        self.journal.add(self._key(key), found)

    @property
    def _evaluate(self) -> Evaluate:
        return self.function if self.shipped is None else self.shipped.evaluate(self.function)

    def _key(self, key: str) -> str:
        module = getattr(self.function, "__module__", "")
        function = getattr(self.function, "__qualname__", type(self.function).__qualname__)
        by = "" if self.shipped is None else f" by {self.shipped.host.name}"
        return f"{self.name} {module}:{function}{by} {key}"


def _call(function: Evaluate, model: nn.Module, name: str) -> Metric:
    """One call; ValueError if it gives no metric, whatever the user's code raises."""
    try:
        found = function(model)
    except (Exception, SystemExit) as error:
        raise ValueError(raised(error)) from error
    finally:
        # A search that is to end must not keep this as a failure.
        raise_swallowed()
    return read_metric(found, name)


def evaluate_once(function: Evaluate, model: nn.Module, name: str) -> Evaluation:
    """One call; where it fails, the search goes on."""
    start = time.monotonic()
    try:
        metric = _call(function, model, name)
    except ValueError as error:
        return Evaluation(None, time.monotonic() - start, str(error))
    return Evaluation(metric, time.monotonic() - start)
