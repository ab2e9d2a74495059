"""The same search gives the same bytes: again, on more threads, in more processes."""

import warnings
from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.tuning import TuneResult

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)


def essence(result: TuneResult) -> tuple[object, ...]:
    """All that a search comes to, but for times."""
    trials = [replace(t, seconds=0.0) for t in result.trials]
    return (
        trials, result.schemes, result.passed, result.score, result.loss, result.interval,
        result.rate, result.layers, result.frontier, result.cut, result.stopped,
        result.test_score, result.test_interval,
    )  # fmt: skip


def tune(task: "Task", folder: Path, **more: Any) -> tuple[TuneResult, bytes]:
    arguments = {"evaluate": task.correct, **task.settings, "max_trials": 12, **more}
    result = vq.tune(task.model, budget=BUDGET, folder=folder, **arguments)
    assert result.passed
    return result, (folder / "model.vq").read_bytes()


@pytest.mark.parametrize("threads", [1, 2])
def test_again_and_on_any_number_of_threads(
    task: "Task", tmp_path: Path, set_threads: Callable[[int], None], threads: int
) -> None:
    set_threads(1)
    first, model = tune(task, tmp_path / "first")
    set_threads(threads)
    with torch.random.fork_rng():
        torch.manual_seed(99)
        second, other = tune(task, tmp_path / "second")
    assert essence(first) == essence(second)
    assert model == other
    assert torch.get_num_threads() == threads


@pytest.mark.parametrize("backend", ["loky", "threading"])
def test_any_number_of_workers(task: "Task", tmp_path: Path, backend: str) -> None:
    inputs, labels = task.inputs, task.labels

    # Local, so that it travels to the processes by value.
    def correct(model: nn.Module) -> Tensor:
        right: Tensor = model(inputs).argmax(1) == labels
        if int(right.sum()) % 5 == 0 and not right.all():
            raise RuntimeError("only the evaluation failed")
        return right

    alone, model = tune(task, tmp_path / "alone", evaluate=correct, test=correct)
    both, other = tune(
        task, tmp_path / "both", evaluate=correct, test=correct, workers=2, backend=backend
    )
    assert essence(alone) == essence(both)
    assert model == other
    assert any(t.error for t in alone.trials)
    # Evaluations begun ahead are no trials.
    capped = vq.tune(
        task.model, correct, BUDGET, **task.settings, max_trials=2, workers=3, backend="threading"
    )
    assert len(capped.trials) == 2


def test_evaluations_ahead_use_the_workers(task: "Task") -> None:
    """With a second worker the next question is answered before it is asked."""
    batches: list[int] = []

    def evaluate(model: nn.Module) -> float:
        batches.append(1)
        return task.accuracy(model)

    result = vq.tune(
        task.model, evaluate, BUDGET, **task.settings, max_trials=10, workers=2,
        backend="sequential",
    )  # fmt: skip
    assert len(batches) > 1 + len(result.trials)  # the float model, the trials and some ahead
    assert len(batches) <= 1 + 2 * len(result.trials)


class Loader:
    """Shuffles anew every time it is read, as data loaders do."""

    def __init__(self, data: Tensor) -> None:
        self.data, self.reads = data, 0

    def __iter__(self) -> Any:
        self.reads += 1
        return iter(self.data[torch.randperm(len(self.data))].split(25))


def test_calibration_is_read_once(task: "Task", tmp_path: Path) -> None:
    (data,) = task.settings["calibration"]
    expected, model = tune(task, tmp_path / "list", calibration=list(data.split(25)))
    forms: list[Iterable[Tensor]] = [iter(data.split(25)), (x for x in data.split(25))]
    for i, calibration in enumerate(forms):
        found, other = tune(task, tmp_path / f"form{i}", calibration=calibration)
        assert essence(found) == essence(expected)
        assert other == model
    loader = Loader(data)
    tune(task, tmp_path / "loader", calibration=loader)
    assert loader.reads == 1


def test_calibration_may_be_a_callable(task: "Task", tmp_path: Path) -> None:
    (data,) = task.settings["calibration"]
    expected, model = tune(task, tmp_path / "list", calibration=[data])
    found, other = tune(task, tmp_path / "callable", calibration=lambda m: m(data))
    assert essence(found) == essence(expected)
    assert other == model


def test_calibration_and_seed_matter(task: "Task", tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        uncalibrated, _ = tune(task, tmp_path / "none", calibration=None)
    calibrated, _ = tune(task, tmp_path / "some")
    assert uncalibrated.layers != calibrated.layers
    fixed = {"candidates": vq.PQ(k=16, dim=4, codebooks="tensor"), "max_trials": 1}
    budget = vq.LossBudget(absolute=0.9, min_agreement=None)
    models = [
        vq.tune(task.model, task.correct, budget, task.settings["calibration"], seed=seed, **fixed)
        for seed in (0, 1)
    ]
    assert not torch.equal(models[0].model[0].codebooks, models[1].model[0].codebooks)  # type: ignore[index]


def test_a_backend_that_nobody_knows_is_told_although_one_worker_needs_none(task: "Task") -> None:
    with pytest.raises(ValueError, match=r"backend='lokyy' is none of 'dask', 'loky', "):
        vq.tune(task.model, lambda _: pytest.fail("ran"), backend="lokyy")


def test_seeds_of_numpy_search_as_those_of_python(task: "Task") -> None:
    one, two = (
        vq.tune(task.model, task.accuracy, BUDGET, **task.settings, max_trials=2, seed=seed)
        for seed in (3, np.int64(3))  # type: ignore[assignment]
    )
    assert one.schemes == two.schemes
    assert one.rate == two.rate
