"""Settings past the budget are trained, and taken if they come back inside."""

import copy
import math
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.tuning import TuneResult
from vq_plugin.tuning.allocation import frontier
from vq_plugin.tuning.propose import Landscape
from vq_plugin.tuning.recovery import next_to_train
from vq_plugin.tuning.report import format_result
from vq_plugin.tuning.result import LayerCandidate

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)
# Codebooks of many values, so that training them can do something.
LADDER = [vq.PQ(k=k, dim=dim) for k in (2, 4, 8, 16, 32) for dim in (2, 4)]


class Loader:
    """Unlabelled batches, shuffled anew every time; the readings are counted, one may be killed."""

    def __init__(self, data: Tensor, kill: int = 0) -> None:
        self.data, self.kill, self.reads = data, kill, 0

    def __iter__(self) -> Iterator[Tensor]:
        self.reads += 1
        if self.reads == self.kill:
            raise KeyboardInterrupt
        return iter(self.data[torch.randperm(len(self.data))].split(50))


def tune(task: "Task", loader: Any, **more: Any) -> TuneResult:
    recovery = vq.Recovery(loader, **{"epochs": 6, **more.pop("recovery", {})})
    return untrained(task, recovery=recovery, **more)


def untrained(task: "Task", **more: Any) -> TuneResult:
    settings = {**task.settings, "candidates": LADDER, "max_trials": 6, "budget": BUDGET, **more}
    return vq.tune(task.model, task.correct, **settings)


def essence(result: TuneResult) -> tuple[object, ...]:
    """All that a search comes to, but for times."""
    return (
        [replace(trial, seconds=0.0) for trial in result.trials],
        result.schemes, result.score, result.interval, result.rate, result.cut, result.stopped,
    )  # fmt: skip


def test_a_setting_that_training_brings_back_is_taken(task: "Task", tmp_path: Path) -> None:
    plain = untrained(task)
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    result = tune(
        task, Loader(task.inputs), folder=tmp_path, test=task.correct, recovery={"epochs": 12}
    )
    searched = [replace(t, seconds=0.0) for t in result.trials if t.phase != "recovery"]
    assert searched == [replace(t, seconds=0.0) for t in plain.trials]
    trained = [trial for trial in result.trials if trial.phase == "recovery"]
    assert 1 <= len(trained) <= 4
    assert list(result.trials)[-len(trained) :] == trained
    best = min((t for t in trained if t.held), key=lambda t: t.nbytes)
    assert all(t.nbytes < min(u.nbytes for u in plain.trials if u.held) for t in trained)
    assert result.passed
    assert (result.schemes, result.rate, result.loss) == (best.schemes, best.rate, best.loss)
    assert result.rate > plain.rate
    assert format_result(result).count("trained: ") == len(trained)
    # It is the training that did it, and the model that comes out was trained.
    schemes = {name: scheme for name, scheme in best.schemes.items() if scheme is not None}
    fitted = vq.compress(task.model, schemes, task.settings["calibration"])
    assert not BUDGET.holds(1.0, task.accuracy(fitted))
    loaded = vq.load(tmp_path / "model.vq", task.model)
    for model in (result.model, loaded):
        assert task.accuracy(model) == result.score == result.test_score
    # The codes are those of the fit, and the float model is as it was.
    for name in schemes:
        one, other = result.model.get_submodule(name), fitted.get_submodule(name)
        assert torch.equal(one.codes, other.codes)  # type: ignore[arg-type]
    assert all(torch.equal(before[n], v) for n, v in task.model.state_dict().items())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["model.vq", "report.html", "report.json"]


def test_training_that_brings_nothing_back_changes_nothing(task: "Task") -> None:
    # Trials enough that what is trained was all evaluated before.
    plain = untrained(task, max_trials=8)
    result = tune(task, Loader(task.inputs), recovery={"lr": 1e-12}, max_trials=8)
    trained = [trial for trial in result.trials if trial.phase == "recovery"]
    assert trained
    assert not any(trial.held for trial in trained)
    assert (result.schemes, result.rate, result.score) == (
        plain.schemes, plain.rate, plain.score,
    )  # fmt: skip


def test_training_reaches_a_budget_that_nothing_else_does(task: "Task") -> None:
    settings = {"candidates": [vq.PQ(k=8, dim=4), vq.PQ(k=4, dim=4)]}
    assert not untrained(task, **settings).passed
    result = tune(task, Loader(task.inputs), **settings)
    assert result.passed
    assert result.trials[-1].phase == "recovery"


def test_the_same_bytes_again_and_with_any_workers(task: "Task", tmp_path: Path) -> None:
    loader = Loader(task.inputs)
    first = tune(task, loader, folder=tmp_path / "first")
    again = tune(task, loader, folder=tmp_path / "again", workers=2, backend="threading")
    memory = tune(task, loader)
    assert essence(first) == essence(again) == essence(memory)
    assert vq.save(memory.model, tmp_path / "memory.vq")
    files = [tmp_path / "first/model.vq", tmp_path / "again/model.vq", tmp_path / "memory.vq"]
    assert len({path.read_bytes() for path in files}) == 1


def test_what_was_trained_is_rounded_before_it_is_evaluated(task: "Task", tmp_path: Path) -> None:
    result = tune(task, Loader(task.inputs), folder=tmp_path / "run", rest="float16")
    memory = tune(task, Loader(task.inputs), rest="float16")
    assert essence(result) == essence(memory)
    assert result.passed
    assert result.trials[-1].phase == "recovery"
    loaded = vq.load(tmp_path / "run" / "model.vq", task.model).state_dict()
    for key, value in result.model.state_dict().items():
        assert torch.equal(loaded[key], value), key
        if key.endswith("bias"):
            assert torch.equal(memory.model.state_dict()[key], value), key
            assert torch.equal(value.half().float(), value), key


@pytest.mark.parametrize("kill", [1, 3, 4])
def test_a_run_that_is_killed_trains_nothing_twice(task: "Task", tmp_path: Path, kill: int) -> None:
    settings = {"max_trials": 2, "recovery": {"epochs": 2, "max_trials": 3}}
    loader = Loader(task.inputs)
    whole = tune(task, loader, folder=tmp_path / "whole", **settings)
    assert loader.reads >= 4
    killed = Loader(task.inputs, kill)
    with pytest.raises(KeyboardInterrupt):
        tune(task, killed, folder=tmp_path / "killed", **settings)
    assert (tmp_path / "killed/journal.jsonl").exists()
    resumed = tune(task, killed, folder=tmp_path / "killed", **settings)
    # One reading was begun in vain: that of the epoch that was killed.
    assert killed.reads == loader.reads + 1
    assert essence(resumed) == essence(whole)
    names = {"model.vq", "report.html", "report.json"}
    assert {path.name for path in (tmp_path / "killed").iterdir()} == names
    whole_model, model = (tmp_path / run / "model.vq" for run in ("whole", "killed"))
    assert whole_model.read_bytes() == model.read_bytes()


def test_other_settings_do_not_find_the_models_of_a_killed_run(
    task: "Task", tmp_path: Path
) -> None:
    with pytest.raises(KeyboardInterrupt):
        tune(task, Loader(task.inputs, kill=6), folder=tmp_path)
    other = {"recovery": {"epochs": 3, "lr": 0.01}}
    assert essence(tune(task, Loader(task.inputs), folder=tmp_path, **other)) == essence(
        tune(task, Loader(task.inputs), **other)
    )


def test_losses_count_against_the_model_and_not_against_the_start(task: "Task") -> None:
    """The start has lost almost all of the budget; the teacher has lost nothing."""
    noise = torch.Generator().manual_seed(1)
    start = copy.deepcopy(task.model)
    with torch.no_grad():
        for value in start.parameters():
            value += 0.05 * value.std() * torch.randn(value.shape, generator=noise)
    begin = 1 - task.accuracy(start)
    assert 0 < begin < BUDGET.limit
    result = untrained(task, start=start)
    assert result.baseline == 1.0
    for trial in result.trials:
        assert trial.loss == pytest.approx(1 - trial.score)
    # Small losses against the start only: what it lost itself is not forgiven.
    tight = vq.LossBudget(absolute=begin / 2)
    fine = {"candidates": [vq.KM(k=256), vq.KM(k=64)], "budget": tight, "start": start}
    refused = untrained(task, **fine)
    assert not refused.passed
    assert refused.model is task.model
    # The teacher is the model itself: training goes beyond the start.
    back = tune(task, Loader(task.inputs), recovery={"epochs": 10}, **fine)
    assert back.passed
    float_bytes = sum(4 * v.numel() for v in task.model.state_dict().values())
    chosen = next(t for t in back.trials if t.schemes == back.schemes)
    assert back.rate == float_bytes / chosen.nbytes


def test_confidence_counts_what_was_trained(task: "Task") -> None:
    sure = vq.LossBudget(absolute=0.08, confidence=0.9)
    result = tune(task, Loader(task.inputs), budget=sure, recovery={"epochs": 10})
    assert result.passed
    assert result.interval is not None
    assert any(t.phase == "recovery" and t.held for t in result.trials)
    assert result.rate == max(t.rate for t in result.trials if t.held)


def test_training_that_fails_is_a_trial_that_failed(task: "Task") -> None:
    result = tune(task, [torch.full((5, 24), math.nan)])
    errors = [trial.error for trial in result.trials if trial.phase == "recovery"]
    assert errors
    assert all(error is not None and "the loss is nan" in error for error in errors)
    assert result.passed


def test_limits_cut_the_recovery(task: "Task") -> None:
    one = tune(task, Loader(task.inputs), recovery={"max_trials": 1})
    assert [t.phase for t in one.trials].count("recovery") == 1
    assert one.cut is not None
    assert "recovery's max_trials=1 reached after 1 trained settings" in one.cut
    late = tune(task, Loader(task.inputs), timeout=1e-9)
    assert not late.trials
    assert late.cut is not None
    assert "timeout reached" in late.cut


@pytest.mark.parametrize("name", ["epochs", "lr", "max_trials"])
def test_limits_that_are_not_positive(name: str) -> None:
    with pytest.raises(ValueError, match=f"recovery: {name} must be above 0, got 0"):
        vq.Recovery([], **{name: 0})


def test_loaders_that_run_dry() -> None:
    with pytest.raises(TypeError, match="several times: give a list of batches"):
        vq.Recovery(iter([torch.zeros(1, 24)]))


def test_starts_of_another_architecture(task: "Task") -> None:
    for start in (nn.Sequential(nn.Linear(24, 5)), nn.Sequential(*task.model, nn.Linear(5, 5))):
        with pytest.raises(ValueError, match="start is not of the architecture of model: one has"):
            untrained(task, start=start)
    with pytest.raises(TypeError, match=r"start is a str, no torch\.nn\.Module"):
        untrained(task, start="pruned")


SIZES = st.lists(st.integers(1, 1000), min_size=2, max_size=12, unique=True)


@given(SIZES, st.data())
def test_bisection_asks_no_setting_twice_and_finds_the_edge(
    sizes: list[int], data: st.DataObject
) -> None:
    sizes = sorted(sizes, reverse=True)
    harms = sorted(data.draw(st.lists(st.floats(0, 9), min_size=len(sizes), max_size=len(sizes))))
    ladders = [[LayerCandidate(None, b, 0.0, h) for b, h in zip(sizes, harms, strict=True)]]
    land = Landscape(ladders, frontier(ladders), 0.01)
    held_until = data.draw(st.integers(0, len(land.frontier)))
    size = data.draw(st.sampled_from([math.inf, *map(float, sizes)]))
    outcomes: dict[tuple[int, ...], bool] = {}
    while (setting := next_to_train(land, size, outcomes)) is not None:
        assert setting not in outcomes
        assert land.nbytes(setting) < size
        outcomes[setting] = land.frontier.index(setting) < held_until
    beyond = [i for i, s in enumerate(land.frontier) if land.nbytes(s) < size]
    holding = [i for i in beyond if i < held_until]
    if holding:
        assert outcomes[land.frontier[holding[-1]]]
    if len(holding) < len(beyond):
        assert not outcomes[land.frontier[beyond[len(holding)]]]
