"""The command line as a process: output that is gone, signals, what terminals obey."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.cli import main

NAME = "fc\x1b]0;owned\x07\n\u202e"
WORKLOAD = '''\
import os
import subprocess
import time
from pathlib import Path

import torch
from torch import nn

from vq_plugin.nn import CodebookLayer


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16))


def evaluate(model):
    return 1.0


def chatty():
    """Prints by all ways that there are, as downloads and compilers do."""
    print("by Python")
    os.write(1, b"by the system\\n")
    subprocess.run(["echo", "by a program"], check=True)
    print("kept in a buffer", end="")
    return model()


def chatty_metric(model):
    print("metric", flush=True)
    os.write(1, b"metric by the system\\n")
    return 1.0


def slow(model):
    """Of the float model at once, of others never."""
    if any(isinstance(module, CodebookLayer) for module in model.modules()):
        Path(f"{os.getpid()}.busy").touch()
        # Python runs what a signal calls between two sleeps, where it came just before one.
        for _ in range(1200):
            time.sleep(0.1)
    return 1.0
'''
RECIPE = """\
version: 1
model: own_workload:model
quantization: {{model_wise: {{scheme: [km(k=2), km(k=4)]}}}}
evaluation: {{tuning: "own_workload:{evaluate}"}}
tuning: {{accuracy_criterion: {{relative: 0.01, min_agreement: null}}}}
output: out
"""


class Escapes(nn.Module):
    """A model whose names are what a terminal obeys."""

    def __init__(self) -> None:
        super().__init__()
        self.add_module(NAME, nn.Linear(8, 8))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli")
    (folder / "own_workload.py").write_text(WORKLOAD)
    for evaluate in ("evaluate", "slow", "chatty_metric"):
        (folder / f"{evaluate}.yaml").write_text(RECIPE.format(evaluate=evaluate))
    torch.manual_seed(0)
    vq.save(vq.compress(Escapes(), vq.KM(k=4)), folder / "m.vq")
    return folder


def command(folder: Path, *words: str, **settings: Any) -> "subprocess.Popen[str]":
    paths = os.pathsep.join([str(folder), *filter(None, sys.path)])
    return subprocess.Popen(
        [sys.executable, "-m", "vq_plugin.cli", *words],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": paths, **settings.pop("env", {})},
        stderr=settings.pop("stderr", subprocess.PIPE),
        text=True,
        **settings,
    )


@pytest.mark.parametrize("words", [("inspect", "m.vq"), ("tune", "evaluate.yaml")], ids="-".join)
def test_a_pipe_that_nobody_reads_changes_no_exit_code(words: tuple[str], folder: Path) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    process = command(folder, *words, stdout=writer)
    os.close(writer)
    _, shown = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "Broken pipe" not in shown
    assert "Traceback" not in shown


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="no device that is always full")
def test_output_that_cannot_be_written_is_a_warning(folder: Path) -> None:
    with open("/dev/full", "w") as full:
        process = command(folder, "inspect", "m.vq", stdout=full)
        _, shown = process.communicate(timeout=200)
    assert process.returncode == 0
    assert shown.splitlines() == [
        "vq-plugin: warning: standard output is lost: [Errno 28] No space left on device"
    ]


def test_closed_output_changes_no_exit_code(folder: Path) -> None:
    process = command(folder, "inspect", "m.vq", stdout=None, preexec_fn=lambda: os.close(1))
    _, shown = process.communicate(timeout=200)
    assert (process.returncode, shown) == (0, "")


def test_an_error_without_a_standard_error_is_still_bad_input(folder: Path) -> None:
    process = command(
        folder,
        *("inspect", "gone.vq"),
        stdout=subprocess.PIPE,
        stderr=None,
        preexec_fn=lambda: os.close(2),
    )
    shown, _ = process.communicate(timeout=200)
    assert (process.returncode, shown) == (2, "")


@pytest.mark.parametrize(
    "words",
    [
        ["compress", "own_workload:chatty", "--scheme", "km(k=4)", "--output", "chatty.vq"],
        ["layers", "own_workload:chatty"],
        ["tune", "chatty_metric.yaml", "--workers", "2"],
    ],
    ids=lambda words: words[0],
)
def test_json_is_alone_on_standard_output(folder: Path, words: list[str]) -> None:
    process = command(folder, *words, "--json", stdout=subprocess.PIPE)
    shown, told = process.communicate(timeout=200)
    assert process.returncode == 0, told
    assert json.loads(shown)
    for line in ("by Python", "by the system", "by a program", "kept in a buffer"):
        assert (line in told) == ("own_workload:chatty" in words or line == "by the system")


def test_what_is_printed_beside_json_may_have_nowhere_to_go(folder: Path) -> None:
    words = ["layers", "own_workload:chatty", "--json"]
    process = command(
        folder, *words, stdout=subprocess.PIPE, stderr=None, preexec_fn=lambda: os.close(2)
    )
    assert process.communicate(timeout=200)[0]
    assert process.returncode == 0
    reader, writer = os.pipe()
    os.close(reader)
    process = command(folder, *words, stdout=writer)
    os.close(writer)
    _, told = process.communicate(timeout=200)
    assert process.returncode == 0
    assert "Traceback" not in told


def test_names_are_shown_to_terminals_that_have_only_ascii(folder: Path, tmp_path: Path) -> None:
    model = nn.ModuleDict({"schicht_ä": nn.Linear(8, 8)})
    vq.save(vq.compress(model, vq.KM(k=4)), tmp_path / "m.vq")
    environment = {"PYTHONIOENCODING": "ascii"}
    process = command(
        folder, "inspect", str(tmp_path / "m.vq"), stdout=subprocess.PIPE, env=environment
    )
    shown, complaint = process.communicate(timeout=200)
    assert (process.returncode, complaint) == (0, "")
    assert "schicht_\\xe4" in shown


def test_what_a_terminal_would_obey_is_escaped(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["inspect", str(folder / "m.vq")]) == 0
    shown = capsys.readouterr().out
    assert "fc\\x1b]0;owned\\x07\\n\\u202e" in shown
    assert len(shown.splitlines()) == 4
    summary = str(vq.summary(vq.load(folder / "m.vq", Escapes())))
    assert summary.replace("\n", "").isprintable()
    error = folder / "other.vq\x1b[2J"
    assert main(["inspect", str(error)]) == 2
    assert "\\x1b[2J" in capsys.readouterr().err


def test_a_folder_or_a_pipe_in_the_place_of_a_file_is_bad_input(
    tmp_path: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    os.mkfifo(tmp_path / "pipe")
    for path, what in ((tmp_path, "a folder"), (tmp_path / "pipe", "no ordinary file")):
        assert main(["inspect", str(path)]) == 2
        shown = capsys.readouterr().err
        assert what in shown
        assert str(path) in shown
    for output in (tmp_path, tmp_path / "gone" / "m.vq"):
        words = ["compress", "no_such_module:model", "--scheme", "km", "--output", str(output)]
        # Before the model is built.
        assert main(words) == 2
        assert str(output) in capsys.readouterr().err


def wait_for_workers(folder: Path, process: "subprocess.Popen[str]", count: int) -> list[int]:
    for _ in range(600):
        found = [int(path.stem) for path in folder.glob("*.busy")]
        if len(found) >= count:
            return found
        assert process.poll() is None, process.communicate()
        time.sleep(0.1)
    raise AssertionError("no evaluation began")


def is_running(number: int) -> bool:
    try:
        os.kill(number, 0)
    except ProcessLookupError:
        return False
    status = Path(f"/proc/{number}/stat")
    return not status.exists() or status.read_text().rpartition(")")[2].split()[0] != "Z"


def wait_for_end(processes: list[int]) -> None:
    for _ in range(100):
        if not any(map(is_running, processes)):
            return
        time.sleep(0.1)
    raise AssertionError("workers are still running")


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize(
    ("number", "code", "word"),
    [
        (signal.SIGINT, 130, "interrupted"),
        (signal.SIGTERM, 143, "terminated"),
        (signal.SIGHUP, 129, "terminated"),
    ],
)
def test_a_signal_ends_the_search_its_workers_and_its_files(
    number: signal.Signals, code: int, word: str, workers: int, folder: Path
) -> None:
    process = command(
        folder,
        *("tune", "slow.yaml", "--workers", str(workers), "--output", f"out{code}{workers}"),
        stdout=subprocess.PIPE,
        start_new_session=True,
    )
    try:
        busy = wait_for_workers(folder, process, workers)
        if number is signal.SIGINT:
            # Ctrl-C goes to all processes of a terminal.
            os.killpg(process.pid, number)
        else:
            process.send_signal(number)
        _, shown = process.communicate(timeout=60)
        assert process.returncode == code, shown
        # After it, the tracker of joblib's workers may name what it cleaned up.
        remedy = "to go on from there, start the same again"
        ends = [line for line in shown.splitlines() if line.startswith(f"vq-plugin: {word}")]
        assert len(ends) == 1, shown
        assert ends[0].endswith(f"out{code}{workers}: {remedy}"), shown
        assert "Traceback" not in shown
        wait_for_end(busy)
        assert not list(folder.glob("**/.vq_plugin.*"))
    finally:
        clean_up(folder, process)


def test_workers_end_after_a_search_that_was_killed(folder: Path) -> None:
    process = command(
        folder,
        *("tune", "slow.yaml", "--workers", "2", "--output", "killed"),
        stdout=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        busy = wait_for_workers(folder, process, 2)
        assert process.pid not in busy
        process.kill()
        wait_for_end(busy)
    finally:
        clean_up(folder, process)


def test_a_command_that_outlives_its_terminal_goes_on(folder: Path) -> None:
    process = command(
        folder,
        *("tune", "slow.yaml", "--output", "nohup"),
        stdout=subprocess.DEVNULL,
        preexec_fn=lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN),
    )
    try:
        wait_for_workers(folder, process, 1)
        process.send_signal(signal.SIGHUP)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(1)
    finally:
        clean_up(folder, process)


def clean_up(folder: Path, process: "subprocess.Popen[str]") -> None:
    process.kill()
    process.communicate()
    for path in folder.glob("*.busy"):
        if is_running(int(path.stem)):
            os.kill(int(path.stem), signal.SIGKILL)
        path.unlink()
