"""Evaluations that fail, limits that are reached, and input that is refused."""

import math
import time
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)


@pytest.mark.parametrize("problem", ["raise", "nan", "none", "shape", "length", "scalar"])
def test_an_evaluation_that_fails_is_a_trial_and_the_search_goes_on(
    task: "Task", problem: str
) -> None:
    calls = 0

    def evaluate(model: nn.Module) -> object:
        nonlocal calls
        calls += 1
        right = task.correct(model)
        if calls == 1 or calls % 2 == 0:
            return right
        match problem:
            case "raise":
                raise RuntimeError("out of memory \udcff")
            case "nan":
                return torch.where(right, 1.0, math.nan)
            case "none":
                return None
            case "shape":
                return right[None]
            case "length":
                return right[1:]
        return 0.99

    message = {
        "raise": "raised RuntimeError at test_search_failures.py:34: out of memory \\udcff",
        "nan": "evaluate returned NaN or infinite results",
        "none": "evaluate returned None",
        "shape": "evaluate returned values of shape (1, 500)",
        "length": "evaluate returned 499 results, and 500 for the float model",
        "scalar": "evaluate returned 1 results, and 500 for the float model",
    }[problem]
    result = vq.tune(task.model, evaluate, BUDGET, **task.settings, max_trials=8)
    assert len(result.trials) > 3
    # The float model's were the first two calls.
    for trial in result.trials[::2]:
        assert message in str(trial.error)
        assert math.isnan(trial.score)
        assert math.isnan(trial.loss)
        assert (trial.held, trial.interval) == (False, None)
    assert all(t.error is None and math.isfinite(t.score) for t in result.trials[1::2])
    assert result.passed == any(t.held for t in result.trials)


@pytest.mark.parametrize("split", ["evaluate", "test"])
@pytest.mark.parametrize("score", [math.nan, -math.inf, None, "0.9"])
def test_a_baseline_that_is_no_metric_is_an_error(task: "Task", split: str, score: Any) -> None:
    splits: dict[str, Any] = {"evaluate": task.accuracy, split: lambda _: score}
    with pytest.raises(ValueError, match=f"{split} of the float model: {split} returned '?{score}"):
        vq.tune(task.model, budget=BUDGET, **task.settings, **splits)


def test_what_evaluate_raises_on_the_float_model_is_an_error(task: "Task") -> None:
    def evaluate(_: nn.Module) -> float:
        raise OSError("no data")

    with pytest.raises(
        ValueError, match=r"evaluate of the float model: raised OSError at \w+\.py:\d+: no data"
    ):
        vq.tune(task.model, evaluate, BUDGET, **task.settings)


def unread() -> Iterable[Tensor]:
    """Calibration that must not be reached."""

    def run(_: nn.Module) -> None:
        raise AssertionError("the layers were to be fitted")

    return run  # type: ignore[return-value]


@pytest.mark.parametrize("split", ["evaluate", "test"])
def test_a_relative_budget_on_a_baseline_of_zero_fails_before_any_fit(
    task: "Task", split: str
) -> None:
    splits: dict[str, Any] = {"evaluate": task.accuracy, split: lambda _: 0.0}
    with pytest.raises(ValueError, match="use absolute="):
        vq.tune(task.model, calibration=unread(), **splits)


@pytest.mark.parametrize(
    ("candidates", "error", "message"),
    [
        ([], ValueError, "are empty"),
        ({"fc": vq.KM()}, ValueError, "'fc' matches nothing"),
        (4, TypeError, "must be a scheme"),
        ("kmm(k=4)", ValueError, "expected a scheme"),
    ],
)
def test_candidates_are_checked_before_any_work(
    task: "Task", candidates: Any, error: type[Exception], message: str
) -> None:
    def evaluate(_: nn.Module) -> float:
        raise AssertionError("ran")

    with pytest.raises(error, match=message):
        vq.tune(task.model, evaluate, candidates=candidates)


@pytest.mark.parametrize("name", ["max_trials", "timeout", "workers"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_limits_must_be_positive(task: "Task", name: str, value: float) -> None:
    limits: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        vq.tune(task.model, task.accuracy, **limits)


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("max_trials", "2", "max_trials must be a number, got '2'"),
        ("max_trials", 2.5, "max_trials must be a whole number, got 2.5"),
        ("workers", None, "workers must be a number, got None"),
        ("workers", 1.5, "workers must be a whole number, got 1.5"),
        ("timeout", "1m", "timeout must be a number, got '1m'"),
        ("seed", "0", "seed must be a whole number, got '0'"),
        ("callback", 5, "callback is a function, got 5"),
        ("test", 0.9, "test is a function, got 0.9"),
        ("recovery", [torch.ones(1)], "recovery is a vq.Recovery, such as"),
    ],
)
def test_arguments_of_wrong_types_are_told_before_any_work(
    task: "Task", name: str, value: object, message: str
) -> None:
    arguments: dict[str, Any] = {name: value}
    with pytest.raises(TypeError, match=message):
        vq.tune(task.model, lambda _: pytest.fail("ran"), **arguments)


def test_max_trials_is_kept_and_told(task: "Task") -> None:
    whole = vq.tune(task.model, task.accuracy, BUDGET, **task.settings)
    assert whole.cut is None
    count = len(whole.trials)
    for most in (1, 3, count - 1):
        cut = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, max_trials=most)
        found = any(t.held for t in cut.trials)
        left = "other settings were left untried" if found else "no setting that holds"
        assert f"max_trials={most} reached: {left}" in str(cut.cut)
        assert [t.schemes for t in cut.trials] == [t.schemes for t in whole.trials[:most]]
        assert cut.passed is found
        assert cut.stopped == (None if found else cut.cut)
    exact = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, max_trials=count)
    assert exact.cut is None


def test_timeout_is_kept_and_told(task: "Task") -> None:
    asked = []

    def slow(model: nn.Module) -> float:
        asked.append(model)
        time.sleep(0.3)
        return 1.0 if task.is_float(model) else 0.0

    result = vq.tune(task.model, slow, BUDGET, **task.settings, timeout=0.5)
    assert len(result.trials) <= 2
    assert len(asked) <= 3  # the float model is the first
    assert str(result.cut).startswith(f"timeout reached after {len(result.trials)} trials: no")
    assert result.stopped == result.cut
    assert not result.passed


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.filterwarnings("ignore:no calibration data")
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_weights_that_are_no_numbers_name_their_layer(
    task: "Task", bad: float, calibrated: bool
) -> None:
    with torch.no_grad():
        task.model[2].weight[1, 3] = bad  # type: ignore[index,union-attr,operator]
    data = [task.inputs] if calibrated else None
    with pytest.raises(ValueError, match=r"layer '2': .*NaN or infinite.*\(1, 3\)"):
        vq.tune(task.model, lambda _: 0.5, BUDGET, data)


def test_calibration_that_is_empty_or_misses_a_layer_names_it(task: "Task") -> None:
    with pytest.raises(ValueError, match="layer '0': calibration never ran it"):
        vq.tune(task.model, task.accuracy, BUDGET, [])
    with pytest.raises(ValueError, match="layer '4': calibration never ran it"):
        vq.tune(task.model, task.accuracy, BUDGET, lambda m: m[:3](task.inputs))
