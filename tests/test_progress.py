"""Progress bars do not need a stderr."""

import functools
import io
import logging
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from tqdm import tqdm

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.console import _Shown
from vq_plugin.progress import progress
from vq_plugin.tuning.watch import Watch


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


class Clock:
    """Time of a processor within functions, each counted once however they call each other."""

    def __init__(self) -> None:
        self.seconds, self.depth, self.calls = 0.0, 0, 0

    def around(self, function: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(function)
        def timed(*args: Any, **kwargs: Any) -> Any:
            began, self.depth = time.process_time(), self.depth + 1
            try:
                return function(*args, **kwargs)
            finally:
                self.depth -= 1
                self.calls += 1
                self.seconds += 0.0 if self.depth else time.process_time() - began

        return timed


@pytest.mark.parametrize("terminal", [True, False])
def test_progress_takes_less_than_a_hundredth_of_the_time(
    terminal: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Measured where it is spent: of two whole runs the difference is that of the machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    monkeypatch.setattr("vq_plugin.progress._is_terminal", lambda: terminal)
    assert main(["recipe", "init", "--from", "digits"]) == 0
    assert main(["tune", "digits.yaml"]) == 0  # what is trained, imported and built once
    clock = Clock()
    for owner, names in (
        (_Shown, ["emit"]),
        (Watch, ["__enter__", "__exit__", "stage", "trial"]),
        (tqdm, ["__init__", "update", "close", "refresh", "set_postfix_str"]),
    ):
        for name in names:
            monkeypatch.setattr(owner, name, clock.around(getattr(owner, name)))
    began = time.process_time()
    assert main(["tune", "digits.yaml"]) == 0
    whole = time.process_time() - began
    assert clock.calls > 20
    assert clock.seconds < 0.01 * whole, (clock.seconds, whole)


def test_a_bar_takes_next_to_nothing_for_an_item() -> None:
    items = range(100_000)
    began = time.process_time()
    for _ in progress(items, desc="count"):
        pass
    # Layers and batches, of which there is one for each, take milliseconds.
    assert time.process_time() - began < 1e-5 * len(items)
