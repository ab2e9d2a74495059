"""A deadline bounds the whole call, and what is found by then is the result."""

import time
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.tuning import candidates
from vq_plugin.tuning.deadline import Deadline

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)


class Clock:
    """Seconds that pass when a test says so."""

    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    fake = Clock()
    monkeypatch.setattr("vq_plugin.tuning.deadline.monotonic", fake)
    return fake


def takes(clock: Clock, seconds: float, function: Callable[[nn.Module], object]) -> object:
    def evaluate(model: nn.Module) -> object:
        clock.now += seconds
        return function(model)

    return evaluate


def test_the_first_setting_is_gentle_and_comes_before_calibration(
    task: "Task", clock: Clock
) -> None:
    """The baseline and one evaluation take all the time that there is."""
    read: list[float] = []

    def calibrate(model: nn.Module) -> None:
        read.append(clock.now)
        model(task.inputs)

    evaluate = takes(clock, 10, task.accuracy)
    result = vq.tune(
        task.model, evaluate, BUDGET, calibrate,  # type: ignore[arg-type]
        candidates=task.settings["candidates"], timeout=15,
    )  # fmt: skip
    assert clock.now == 1020
    # Only then: does what was found agree with the float model?
    assert read == [1020]
    assert result.passed
    assert result.schemes == {
        # Eight centers for five rows: every sub-vector has its own.
        name: vq.PQ(k=8, dim=4) if layer.out_features <= 8 else vq.KM(k=64)
        for name, layer in task.model.named_modules()
        if isinstance(layer, nn.Linear)
    }
    assert "timeout reached after 1 trials: other settings were left untried" in str(result.cut)
    assert "3 of 15 candidates were fitted" in str(result.cut)
    assert "calibration was not read" in str(result.cut)


@pytest.mark.parametrize("timeout", [25, 55])
def test_the_whole_call_ends_within_one_evaluation(
    task: "Task", clock: Clock, timeout: float
) -> None:
    evaluate = takes(clock, 10, task.accuracy)
    result = vq.tune(task.model, evaluate, BUDGET, **task.settings, timeout=timeout)  # type: ignore[arg-type]
    assert timeout <= clock.now - 1000 <= timeout + 10
    assert result.passed
    assert str(result.cut).startswith(f"timeout reached after {len(result.trials)} trials")
    longer = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, timeout=10_000)
    assert longer.cut is None
    assert longer.rate >= result.rate


def test_the_verdict_of_the_test_split_has_its_time(task: "Task", clock: Clock) -> None:
    evaluate, test = (takes(clock, seconds, task.accuracy) for seconds in (1, 20))
    result = vq.tune(task.model, evaluate, BUDGET, **task.settings, test=test, timeout=60)  # type: ignore[arg-type]
    assert clock.now - 1000 <= 61
    assert result.passed
    assert result.test_score is not None


def test_slow_calibration_is_cut(task: "Task", clock: Clock) -> None:
    """And the pieces that were read are what the fits go by."""

    class Slow(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body = task.model

        def forward(self, x: Tensor) -> Tensor:
            clock.now += len(x) / 100
            scores: Tensor = self.body(x)
            return scores

    def evaluate(model: nn.Module) -> float:
        return task.accuracy(model.get_submodule("body"))

    result = vq.tune(
        Slow(), evaluate, BUDGET, [task.inputs] * 10,
        candidates=task.settings["candidates"], timeout=20,
    )  # fmt: skip
    assert clock.now - 1000 <= 22
    assert result.passed
    assert "calibration stopped after 10% of its data" in str(result.cut)


def test_a_layer_without_time_for_its_fit_stays_float(
    task: "Task",
    clock: Clock,
    monkeypatch: pytest.MonkeyPatch,
    set_threads: Callable[[int], None],
) -> None:
    # One fit after the other: of two at once either may find the clock where the other left it.
    set_threads(1)
    fit = candidates.fit_named  # type: ignore[attr-defined]

    def slow(name: str, *args: object, **kwargs: object) -> object:
        clock.now += 4 if name == "4" else 100
        return fit(name, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates, "fit_named", slow)
    ladder = [vq.KM(k=16), None]
    result = vq.tune(task.model, task.accuracy, BUDGET, [task.inputs], candidates=ladder, timeout=9)
    assert result.passed
    assert result.schemes is not None
    assert [s for s in result.schemes.values() if s] == [vq.KM(k=16)] * 2
    assert result.schemes["2"] is None


def test_candidates_are_fitted_where_the_search_asks(
    task: "Task", monkeypatch: pytest.MonkeyPatch
) -> None:
    fits: list[tuple[str, str]] = []
    fit = candidates.fit_named  # type: ignore[attr-defined]

    def counted(name: str, weight: Tensor, scheme: vq.Scheme, **kwargs: object) -> object:
        fits.append((name, str(scheme)))
        return fit(name, weight, scheme, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(candidates, "fit_named", counted)
    result = vq.tune(task.model, task.accuracy, BUDGET, task.settings["calibration"])
    assert result.passed
    # Each once, and only those that some trial wanted or nearly did.
    assert len({*fits}) == len(fits)
    assert len(fits) < 3 * 23 / 1.5
    shown = {
        (layer.name, str(each.scheme))
        for layer in result.layers
        for each in layer.candidates
        if each.scheme
    }
    assert shown == {*fits}


def test_a_deadline_that_is_far_is_not_felt(task: "Task") -> None:
    start = time.monotonic()
    result = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, timeout=600)
    assert result.cut is None
    assert time.monotonic() - start < 300


def test_deadlines_of_parts(clock: Clock) -> None:
    whole = Deadline.after(10)
    clock.now += 2
    assert (whole.left, whole.share(0.25).left, whole.earlier(3).left) == (8, 2, 5)
    clock.now += 8
    assert whole.passed
    assert not Deadline.after(None).limited
    assert not Deadline().share(0.5).passed
