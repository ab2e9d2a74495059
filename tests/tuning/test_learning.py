"""Models that learn from float: the budget finds the price of a bit."""

import math
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch

import vq_plugin as vq
from vq_plugin.nn import coded_weights
from vq_plugin.tuning import TuneResult
from vq_plugin.tuning.report import format_result

from .test_recovery import Loader

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)
LADDER = [vq.KM(k=4), vq.KM(k=16), None]


def tune(task: "Task", loader: Any, **more: Any) -> TuneResult:
    learning = vq.Learning(loader, **{"epochs": 12, "lr": 4e-3, **more.pop("learning", {})})
    settings = {**task.settings, "candidates": LADDER, "max_trials": 2, "budget": BUDGET, **more}
    return vq.tune(task.model, task.correct, recovery=learning, **settings)


def learned(result: TuneResult) -> list[Any]:
    return [trial for trial in result.trials if trial.phase == "recovery"]


def essence(result: TuneResult) -> tuple[object, ...]:
    """All that a search comes to, but for times, and for NaN, which is not equal to itself."""
    return (
        [repr(replace(trial, seconds=0.0)) for trial in result.trials],
        result.schemes, result.score, result.interval, result.rate, result.cut, result.stopped,
    )  # fmt: skip


def test_the_smallest_learned_model_that_holds_is_taken(task: "Task", tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    result = tune(task, Loader(task.inputs), folder=tmp_path, test=task.correct, rest="float16")
    trials = learned(result)
    assert 2 <= len(trials) <= 3
    held = [trial for trial in trials if trial.held]
    assert len({trial.rate_weight for trial in trials}) == len(trials)
    assert all(trial.held == (trial.loss <= BUDGET.limit) for trial in trials)
    best = min(held, key=lambda t: t.nbytes)
    assert result.trials[result.chosen_trial or 0] == best
    assert (result.schemes, result.rate, result.loss) == (best.schemes, best.rate, best.loss)
    untrained = [trial for trial in result.trials if trial.rate_weight is None]
    assert best.nbytes < min(trial.nbytes for trial in untrained if trial.held)
    # A dearer bit makes smaller files.
    by_price = sorted(trials, key=lambda t: t.rate_weight)
    assert [t.nbytes for t in by_price] == sorted((t.nbytes for t in trials), reverse=True)
    assert format_result(result).count(" a bit, ") == len(trials)
    # It is what learn makes at that price.
    again = vq.learn(
        task.model, Loader(task.inputs), rate_weight=best.rate_weight, epochs=12, lr=4e-3
    )
    for name, coded in coded_weights(again).items():
        codes = coded_weights(result.model)[name].codes
        assert torch.equal(coded.codes, codes), name
    # What was evaluated is what is in the file, and the float model is as it was.
    loaded = vq.load(tmp_path / "model.vq", task.model)
    for model in (result.model, loaded):
        assert task.accuracy(model) == result.score == result.test_score
    assert {n: each.scheme for n, each in coded_weights(loaded).items()} == result.schemes
    size = (tmp_path / "model.vq").stat().st_size
    assert best.nbytes - 8 * len(best.schemes) <= size < best.nbytes + 500
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.vq", "report.html", "report.json"]


def test_a_run_that_is_killed_learns_nothing_twice(task: "Task", tmp_path: Path) -> None:
    settings = {"learning": {"max_trials": 2, "epochs": 5}, "max_trials": 1}
    loader = Loader(task.inputs)
    whole = tune(task, loader, folder=tmp_path / "whole", **settings)
    assert loader.reads == 10
    # In the second training.
    killed = Loader(task.inputs, kill=8)
    with pytest.raises(KeyboardInterrupt):
        tune(task, killed, folder=tmp_path / "killed", **settings)
    resumed = tune(task, killed, folder=tmp_path / "killed", **settings)
    # One reading was begun in vain: that of the epoch that was killed.
    assert killed.reads == loader.reads + 1
    assert essence(resumed) == essence(whole)
    files = [tmp_path / run / "model.vq" for run in ("whole", "killed")]
    assert files[0].read_bytes() == files[1].read_bytes()
    memory = tune(task, Loader(task.inputs), **settings)
    assert essence(memory) == essence(whole)


def test_confidence_counts_what_was_learned(task: "Task") -> None:
    sure = vq.LossBudget(absolute=0.12, confidence=0.9)
    result = tune(task, Loader(task.inputs), budget=sure)
    assert result.passed
    assert any(trial.held for trial in learned(result))
    assert result.interval is not None
    assert result.interval[1] <= sure.limit
    assert result.rate == max(trial.rate for trial in result.trials if trial.held)


def test_layers_that_stay_in_float_stay(task: "Task") -> None:
    candidates = {"0": LADDER, "2": LADDER, "4": None}
    learning = {"max_trials": 1, "epochs": 1}
    result = tune(task, Loader(task.inputs), candidates=candidates, learning=learning)
    (trial,) = learned(result)
    assert trial.error is None
    kinds = {name: type(scheme) for name, scheme in trial.schemes.items()}
    assert kinds == {"0": vq.KM, "2": vq.KM, "4": type(None)}


def test_training_that_fails_is_a_trial_that_failed(task: "Task") -> None:
    plain = tune(task, [torch.full((5, 24), math.nan)])
    assert plain.passed
    whole = sum(value.nbytes for value in task.model.state_dict().values())
    for trial in learned(plain):
        assert "the loss is nan" in trial.error
        assert (trial.nbytes, trial.rate, trial.held) == (whole, 1.0, False)
    assert len(learned(plain)) == 3


def test_what_is_larger_and_over_ends_the_search_for_a_price(task: "Task") -> None:
    """That would only be made larger by a lower price."""
    small = vq.LossBudget(absolute=0.21)
    result = tune(
        task, Loader(task.inputs), budget=small, candidates=[vq.KM(k=3)],
        learning={"epochs": 1, "lr": 1e-12},
    )  # fmt: skip
    (trial,) = learned(result)
    assert trial.loss > small.limit
    assert trial.nbytes >= min(t.nbytes for t in result.trials if t.held)


def test_time_cuts_the_learning(task: "Task") -> None:
    class Slow(Loader):
        def __iter__(self) -> Any:
            clock.append(1e9)
            return super().__iter__()

    from vq_plugin.tuning import deadline

    clock: list[float] = []
    real = deadline.monotonic
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(deadline, "monotonic", lambda: real() + sum(clock))
        result = tune(task, Slow(task.inputs), timeout=1e8, learning={"epochs": 1})
    assert len(learned(result)) == 1
    assert result.cut is not None
    assert "timeout reached after 1 learned models: others were left" in result.cut


def test_an_export_that_cannot_hold_what_is_learned_says_so_at_once(
    task: "Task", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from vq_plugin.export.targets import TARGETS

    def refusal(scheme: vq.Scheme, shape: object) -> str | None:
        return "more than 16 centers" if scheme.k > 16 else None

    monkeypatch.setitem(TARGETS, "aoti", replace(TARGETS["aoti"], refusal=refusal))
    with pytest.raises(ValueError, match=r"layer '0' has no scheme .*more than 16 centers"):
        tune(task, Loader(task.inputs), export=["aoti"], folder=tmp_path)


def test_vectors_learn_in_a_search(task: "Task") -> None:
    vectors = vq.PQ(k=16, dim=2, codebooks="tensor")
    settings = {"learning": {"max_trials": 1, "epochs": 5, "schemes": vectors}, "max_trials": 1}
    result = tune(task, Loader(task.inputs), **settings)
    (trial,) = learned(result)
    assert set(trial.schemes.values()) == {vectors}
    settings["learning"] = {"max_trials": 1, "schemes": "rq(k=16,stages=2,dim=4)"}
    with pytest.raises(ValueError, match="does not learn"):
        tune(task, Loader(task.inputs), **settings)


def test_limits_that_are_not_positive() -> None:
    with pytest.raises(ValueError, match="recovery: epochs must be above 0, got 0"):
        vq.Learning([], epochs=0)
