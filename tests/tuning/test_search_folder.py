"""What a search leaves in its folder."""

import json
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.tuning.journal import Journal

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.is_file()}


def test_the_model_and_the_reports(task: "Task", tmp_path: Path) -> None:
    folder = tmp_path / "a" / "b"
    result = vq.tune(task.model, task.correct, BUDGET, **task.settings, folder=folder)
    assert names(folder) - {"journal.lock"} == {"model.vq", "report.json", "report.html"}
    loaded = vq.load(folder / "model.vq", task.model)
    for key, value in result.model.state_dict().items():
        assert torch.equal(value, loaded.state_dict()[key])
    assert task.accuracy(loaded) == result.score
    report = json.loads((folder / "report.json").read_text())
    assert len(report["result"]["trials"]) == len(result.trials)
    assert "<html" in (folder / "report.html").read_text()


def test_a_model_of_an_earlier_run_does_not_pass_for_the_result(
    task: "Task", tmp_path: Path
) -> None:
    vq.tune(task.model, task.correct, BUDGET, **task.settings, folder=str(tmp_path))
    before = contents(tmp_path)

    def bad(model: nn.Module) -> float:
        return float(task.is_float(model))

    result = vq.tune(task.model, bad, BUDGET, [task.inputs], candidates=vq.KM(k=4), folder=tmp_path)
    assert not result.passed
    assert names(tmp_path) - {"journal.lock"} == {"report.json", "report.html", "previous"}
    # Yet it is not lost.
    assert contents(tmp_path / "previous") == before


def test_an_error_destroys_nothing(task: "Task", tmp_path: Path) -> None:
    vq.tune(task.model, task.correct, BUDGET, **task.settings, folder=tmp_path)
    before = contents(tmp_path)

    def broken(_: nn.Module) -> float:
        raise OSError("no data")

    with pytest.raises(
        ValueError, match=r"evaluate of the float model: raised OSError at \w+\.py:\d+: no data"
    ):
        vq.tune(task.model, broken, BUDGET, **task.settings, folder=tmp_path)
    assert contents(tmp_path) == before


def test_a_folder_in_use_is_left_alone(task: "Task", tmp_path: Path) -> None:
    (tmp_path / "model.vq").write_bytes(b"of the other run")
    with Journal(tmp_path), pytest.raises(ValueError, match=f"another run is using {tmp_path}"):
        vq.tune(task.model, task.correct, BUDGET, **task.settings, folder=tmp_path)
    assert (tmp_path / "model.vq").read_bytes() == b"of the other run"


def test_a_run_that_was_stopped_goes_on(task: "Task", tmp_path: Path) -> None:
    calls = 0

    def evaluate(model: nn.Module) -> object:
        nonlocal calls
        calls += 1
        if calls == 5:
            raise KeyboardInterrupt
        return task.correct(model)

    alone = vq.tune(task.model, task.correct, BUDGET, **task.settings)
    with pytest.raises(KeyboardInterrupt):
        vq.tune(task.model, evaluate, BUDGET, **task.settings, folder=tmp_path)
    assert (tmp_path / "journal.jsonl").exists()
    result = vq.tune(task.model, evaluate, BUDGET, **task.settings, folder=tmp_path)
    assert result.resumed == 4
    # The float model twice and ruined once, since outputs differ; and the one that was stopped.
    assert result.agreement is not None
    assert result.agreement < 0.9
    assert calls == 2 + len(result.trials) + 1 + 1
    assert [t.score for t in result.trials] == [t.score for t in alone.trials]
    assert result.schemes == alone.schemes
    assert not (tmp_path / "journal.jsonl").exists()
    again = vq.tune(task.model, evaluate, BUDGET, **task.settings, folder=tmp_path)
    assert again.resumed == 0


def test_a_journal_of_another_model_is_of_no_use(task: "Task", tmp_path: Path) -> None:
    """Even if what was compressed is the same."""
    candidates, calls = {"0": [vq.KM(k=4), vq.KM(k=8), vq.KM(k=16)]}, 0

    def stop(model: nn.Module) -> object:
        nonlocal calls
        calls += 1
        if calls == 4:
            raise KeyboardInterrupt
        return task.correct(model)

    with pytest.raises(KeyboardInterrupt):
        vq.tune(task.model, stop, BUDGET, [task.inputs], candidates=candidates, folder=tmp_path)
    assert len((tmp_path / "journal.jsonl").read_text().splitlines()) == 3
    with torch.no_grad():
        task.model[4].bias.add_(1)  # type: ignore[index,union-attr,operator]
    result = vq.tune(
        task.model, stop, BUDGET, [task.inputs], candidates=candidates, folder=tmp_path
    )
    assert result.resumed == 0
    assert result.baseline == task.accuracy(task.model)
