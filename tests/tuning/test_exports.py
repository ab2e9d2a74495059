"""Exports of a search: files that answer as the model does, and errors before any work."""

import json
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.export import targets as targets_module
from vq_plugin.export.runtimes import Running
from vq_plugin.export.targets import TARGETS
from vq_plugin.tuning.exports import OneByOne, export_to
from vq_plugin.tuning.release import release

if TYPE_CHECKING:
    from .conftest import Task

onnxruntime = pytest.importorskip("onnxruntime")

BUDGET = vq.LossBudget(absolute=0.1)


def never(model: nn.Module) -> float:
    raise AssertionError("evaluated before the error was found")


def test_files_answer_as_the_model_does(task: "Task", tmp_path: Path) -> None:
    pytest.importorskip("coremltools")
    candidates = (vq.RQ(k=4, stages=2, dim=4), vq.KM(k=16, scale="row"), vq.KM(k=16))
    result = vq.tune(
        *(task.model, task.correct, BUDGET, [task.inputs]),
        candidates=candidates,
        max_trials=2,
        folder=tmp_path,
        export=["onnx", "coreml"],
    )
    assert result.passed
    # A package of Core ML holds no sums and no row scales.
    assert {s for trial in result.trials for s in trial.schemes.values()} == {vq.KM(k=16)}
    onnx, coreml = result.exports
    session = onnxruntime.InferenceSession(tmp_path / onnx.file)
    (name,) = (each.name for each in session.get_inputs())
    (output,) = session.run(None, {name: task.inputs.numpy()})
    with torch.no_grad():
        expected = result.model(task.inputs)
    # Of the largest, as sums of other orders are rounded by it.
    size = expected.abs().max()
    torch.testing.assert_close(torch.from_numpy(output) / size, expected / size)
    assert (onnx.agreement, coreml.agreement) == (1, 1)
    assert onnx.error is not None
    assert onnx.error < 1e-5
    assert coreml.error is None
    assert "3 of 3 weights" in coreml.checked
    package = [
        path.stat().st_size for path in (tmp_path / coreml.file).rglob("*.*") if path.is_file()
    ]
    assert (onnx.nbytes, coreml.nbytes) == ((tmp_path / onnx.file).stat().st_size, sum(package))
    report = json.loads((tmp_path / "report.json").read_text())
    assert [each["target"] for each in report["result"]["exports"]] == ["onnx", "coreml"]
    assert onnx.file in (tmp_path / "report.html").read_text()


def test_a_file_that_answers_otherwise_shows(
    task: "Task", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Running("a runtime", lambda x: [x[:, :5].roll(1, 0)])
    target = replace(TARGETS["onnx"], load=lambda path: other)
    monkeypatch.setitem(targets_module.TARGETS, "onnx", target)
    small = vq.compress(task.model, vq.KM(k=16))
    (export,) = export_to(["onnx"], small, tmp_path, [task.inputs])
    assert export.agreement is not None
    assert export.agreement < 0.5
    assert export.error is not None
    assert export.error > 0.5


def test_one_sample_after_the_other() -> None:
    def one(x: Tensor) -> list[Tensor]:
        assert len(x) == 1
        return [x * 2]

    x = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(OneByOne(Running("one", one))(x)[0], x * 2)


class Projected(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(24, 16)
        self.lstm = nn.LSTM(16, 8, proj_size=4)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = self.lstm(self.first(x).unsqueeze(0))[0][0]
        return result


@pytest.mark.parametrize(
    ("model", "settings", "message"),
    [
        (
            nn.Linear(24, 5),
            {"export": "onnx"},
            r"a list of targets, such as \['onnx'\]; got 'onnx'",
        ),
        (nn.Linear(24, 5), {"export": None}, r"a list of targets, such as .*; got None"),
        (nn.Linear(24, 5), {"export": ["tflite"]}, "no target 'tflite': there are onnx, "),
        (nn.Linear(24, 5), {"export": ["onnx", "onnx"]}, "'onnx' is given twice"),
        (nn.Linear(24, 5), {"export": ["onnx"], "folder": None}, "folder="),
        (nn.Linear(24, 5), {"export": ["onnx"], "calibration": None}, "first batch is the example"),
        (
            nn.Sequential(nn.Linear(24, 5)),
            {"export": ["onnx", "coreml"], "candidates": "rq(k=4,stages=2,dim=4)"},
            r"layer '0' has no .*: rq\(.*\) in coreml: palettes have one table.*; use KM or PQ",
        ),
        (Projected(), {"export": ["onnx"]}, "onnx: layer 'lstm': .* make it an nn.LSTM and an nn"),
    ],
)
def test_errors_come_before_any_work(
    model: nn.Module, settings: dict[str, Any], message: str, task: "Task", tmp_path: Path
) -> None:
    given = {"calibration": [task.inputs], "folder": tmp_path, "candidates": vq.KM(k=4), **settings}
    with pytest.raises(ValueError, match=message):
        vq.tune(model.eval(), never, **given)
    assert {path.name for path in tmp_path.iterdir()} <= {"journal.lock"}


def test_a_package_that_is_missing_shows_first(
    task: "Task", tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("vq_plugin.export.extras.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"coreml: .* pip install 'vq-plugin\[coreml\]'"):
        vq.tune(task.model, never, calibration=[task.inputs], folder=tmp_path, export=["coreml"])


def test_folders_are_replaced_whole(tmp_path: Path) -> None:
    name = TARGETS["coreml"].file
    for text in ("old", "new"):
        with release(tmp_path) as written:
            (written / name).mkdir()
            (written / name / text).write_text(text)
    assert [path.name for path in (tmp_path / name).iterdir()] == ["new"]
    assert [path.name for path in (tmp_path / "previous" / name).iterdir()] == ["old"]
    with release(tmp_path) as written:
        (written / "report.json").write_text("{}")
    assert not (tmp_path / name).exists()
