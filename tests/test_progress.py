"""Progress bars do not need a stderr."""

import io
import logging
import subprocess
import sys

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.progress import progress


@pytest.mark.parametrize("closed", [False, True], ids=["missing", "closed"])
def test_calls_without_a_stderr(closed: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    stream.close()
    monkeypatch.setattr(sys, "stderr", stream if closed else None)
    monkeypatch.setattr(sys, "stdout", stream if closed else None)
    model, batches = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 4)).eval(), [torch.randn(8, 8)] * 3
    small = vq.compress(model, vq.KM(k=4), batches)
    vq.finetune(small, batches, teacher=model)
    vq.prune(model, batches, 0.5)
    vq.compensate(vq.compress(model, {"0": vq.KM(k=2)}), model, batches)
    loose = vq.LossBudget(relative=0.5)
    candidates = {"*": [vq.KM(k=4)]}
    assert vq.tune(model, lambda _: 1.0, loose, batches, candidates=candidates).passed


def test_a_process_without_a_stderr() -> None:
    code = "import torch, vq_plugin as vq; print(vq.compress(torch.nn.Linear(8, 8), vq.KM(k=4)))"
    run = subprocess.run(
        ["sh", "-c", f"exec {sys.executable} -c '{code}' 2>&-"], capture_output=True, text=True
    )
    assert run.returncode == 0
    assert "CodebookLinear" in run.stdout


@pytest.mark.parametrize(("unit", "units"), [("batch", "batches"), ("layer", "layers")])
def test_lines_of_a_log_count_in_words(
    unit: str, units: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vq_plugin.progress._PAUSE", 0)
    with caplog.at_level(logging.INFO, "vq_plugin"):
        list(progress([1, 2], desc="learn 1/4", total=2, unit=unit))
    assert f"learn 1/4: 1 of 2 {units}, " in caplog.text


def test_a_line_without_a_title_begins_with_the_count(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("vq_plugin.progress._PAUSE", 0)
    with caplog.at_level(logging.INFO, "vq_plugin"):
        list(progress([1, 2], total=2, unit="step"))
    assert caplog.messages[1].startswith("1 of 2 steps, ")
    assert not any(message.startswith(":") for message in caplog.messages)
