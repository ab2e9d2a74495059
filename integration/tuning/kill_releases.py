"""Commands that are killed at random moments: is the release before them, or theirs, whole?

    python -m integration.tuning.kill_releases --kills 50

`tune`, `compress` and `export` write into a folder that holds a release. SIGKILL, SIGTERM or SIGINT
ends them: half of the times at a random time, the others right before one of their changes of the
file system, of which the last ones are the swap of old results for new ones. Each command is then
run again in the same folder, and has to end as one that was never killed.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.process import BaseProcess
from pathlib import Path

import torch

from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from vq_plugin.cli import main as command_line

SIGNALS = (signal.SIGKILL, signal.SIGTERM, signal.SIGINT)
# What Python says before it changes a file system.
CHANGES = {"os.link", "os.mkdir", "os.remove", "os.rename", "os.rmdir", "shutil.copyfile"}
WORKLOAD = """\
import time
import torch
from torch import nn

def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()

inputs = torch.randn(200, 64, generator=torch.Generator().manual_seed(1))
labels = model()(inputs).argmax(1)

def evaluate(model):
    time.sleep(0.02)
    with torch.no_grad():
        return (model(inputs).argmax(1) == labels).float().mean().item()

def batches():
    return [inputs[:50]]
"""
RECIPE = """\
version: 1
model: killed_workload:model
quantization: {{calibration: killed_workload:batches, model_wise: {{scheme: [{schemes}]}}}}
evaluation: {{tuning: killed_workload:evaluate}}
tuning: {{accuracy_criterion: {{relative: 0.2}}}}
output: release
"""
COMPRESS = ["compress", "killed_workload:model", "--output", "release/model.vq", "--scheme"]
EXPORT = ["--model", "killed_workload:model", "--example", "killed_workload:batches"]
Names = tuple[str, ...]


@dataclass(frozen=True)
class Case:
    """A command that makes a release, those before it, and the files of a release."""

    name: str
    before: tuple[list[str], ...]
    words: list[str]
    files: Names


def _export(target: str, file: str) -> Case:
    to = ["--to", target, *EXPORT, "--output", f"release/{file}"]
    models = [[*COMPRESS[:3], f"{k}.vq", "--scheme", f"km(k={k})"] for k in (4, 8)]
    before = (*models, ["export", "4.vq", *to])
    return Case(f"export {target}", before, ["export", "8.vq", *to], (file,))


CASES = (
    Case("tune", (["tune", "old.yaml"],), ["tune", "new.yaml"],
         ("model.vq", "report.json", "report.html")),
    Case("compress", ([*COMPRESS, "km(k=4)"],), [*COMPRESS, "km(k=8)"], ("model.vq",)),
    _export("onnx", "model.onnx"),
    _export("coreml", "model.mlpackage"),
)  # fmt: skip


def content(path: Path) -> bytes | None:
    """Of a file or a package what is the same in every run of a command."""
    if path.is_dir():
        # The manifest has names that are drawn anew.
        files = sorted(f for f in path.rglob("*") if f.suffix in (".bin", ".mlmodel"))
        return b"".join(map(Path.read_bytes, files))
    if not path.exists():
        return None
    if path.name == "report.json":
        report = json.loads(path.read_text())
        return json.dumps(
            [report["recipe"], report["sizes"], len(report["result"]["trials"])]
        ).encode()
    if path.suffix == ".html":
        page = path.read_text()
        return page[page.index("killed_workload:model") :][:300].encode() + page[-20:].encode()
    return path.read_bytes()


def release(folder: Path, case: Case) -> list[bytes | None]:
    return [content(folder / name) for name in case.files]


def run(words: list[str], folder: Path, before_change: Callable[[], None]) -> None:
    """A command in a process of its own."""
    os.chdir(folder)
    sys.path.insert(0, str(folder))
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, 1)
    os.dup2(nowhere, 2)
    # In the background of a shell it is ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    sys.addaudithook(lambda event, _: before_change() if event in CHANGES else None)
    status = command_line(words)
    if status:
        os._exit(status)


def start(words: list[str], folder: Path, before_change: Callable[[], None]) -> BaseProcess:
    process = multiprocessing.get_context("fork").Process(
        target=run, args=(words, folder, before_change)
    )
    process.start()
    return process


def finished(words: list[str], folder: Path) -> int:
    """Runs a command to its end; how often it changed the file system."""
    count = multiprocessing.get_context("fork").Value("i", 0)

    def add() -> None:
        count.value += 1

    process = start(words, folder, add)
    process.join()
    if process.exitcode:
        raise RuntimeError(f"{words} failed with exit code {process.exitcode}")
    return int(count.value)


@dataclass
class Known:
    """A case when it is left alone: its folder before, both releases, how long it takes."""

    folder: Path
    old: list[bytes | None]
    new: list[bytes | None]
    changes: int
    seconds: float


def left_alone(case: Case, place: Path) -> Known:
    folder = place / "before"
    (folder / "release").mkdir(parents=True)
    (folder / "killed_workload.py").write_text(WORKLOAD)
    (folder / "old.yaml").write_text(RECIPE.format(schemes="km(k=32)"))
    (folder / "new.yaml").write_text(RECIPE.format(schemes="km(k=4), km(k=8), km(k=16)"))
    for words in case.before:
        finished(words, folder)
    alone = place / "alone"
    shutil.copytree(folder, alone)
    began = time.perf_counter()
    changes = finished(case.words, alone)
    seconds = time.perf_counter() - began
    old, new = (release(each / "release", case) for each in (folder, alone))
    if old == new or None in (*old, *new):
        raise RuntimeError(f"{case.name}: the two releases cannot be told apart")
    return Known(folder, old, new, changes, seconds)


def killed(case: Case, known: Known, folder: Path, rng: random.Random) -> dict[str, object]:
    """One command that is killed, what it left, and what the same command makes of that."""
    number = rng.choice(SIGNALS)
    shutil.copytree(known.folder, folder)
    if by_change := rng.random() < 0.5:
        left = rng.randrange(known.changes)

        def kill() -> None:
            nonlocal left
            left -= 1
            if left == -1:
                os.kill(os.getpid(), number)

        process = start(case.words, folder, kill)
    else:
        process = start(case.words, folder, lambda: None)
        process.join(rng.uniform(0, known.seconds))
        if process.is_alive() and process.pid:
            os.kill(process.pid, number)
    process.join()
    place = folder / "release"
    found = release(place, case)
    state = (
        {True: "old", found == known.new: "new"}[True] if found in (known.old, known.new) else "?"
    )
    if state == "?" and release(place / "previous", case) == known.old:
        state = "previous"
    began = time.perf_counter()
    finished(case.words, folder)
    known.seconds = min(known.seconds, time.perf_counter() - began)
    again = release(place, case) == known.new
    beside = {path.name for path in place.iterdir()} - {*case.files, "previous"}
    return {
        "command": case.name, "signal": number.name, "before": "a change" if by_change else "",
        "exit code": process.exitcode, "whole": state, "again": "new" if again else "?",
        "beside": " ".join(sorted(beside)),
    }  # fmt: skip


def _misleads(row: dict[str, object]) -> bool:
    number = signal.Signals[str(row["signal"])]
    # By the command, or by Python before the command is there.
    return row["exit code"] not in (0, 128 + number, -number)


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kills", type=int, default=50, help="how many (50; --quick: 8)")
        parser.add_argument("--seed", type=int, default=0)

    options = parse_arguments(str(__doc__), add)
    kills = 8 if options.quick else options.kills
    report = Report("kill_releases", {"quick": options.quick, "kills": kills, "seed": options.seed})
    torch.set_num_threads(1)  # before any work: the processes are forks of this one
    rng = random.Random(options.seed)
    columns = ("command", "signal", "before", "exit code", "whole", "again", "beside")
    table = Table("Kills", dict.fromkeys(columns, ""))
    with tempfile.TemporaryDirectory() as place:
        known = {case.name: left_alone(case, Path(place) / case.name) for case in CASES}
        late = 0
        while len(table.rows) < kills:
            # The swap of several files is the hardest.
            case = CASES[0] if len(table.rows) % 2 else CASES[1 + len(table.rows) // 2 % 3]
            folder = Path(place) / f"{len(table.rows)}.{late}"
            row = killed(case, known[case.name], folder, rng)
            if row["exit code"] == 0 and row["whole"] == "new":
                late += 1
            else:
                table.rows.append(row)
    report.add(table)
    report.note(f"{late} more signals came when the command was done, or had only to tidy up")
    report.checks += [
        Check("kills", len(table.rows), kills, at_least=True),
        Check("no whole release", sum(row["whole"] == "?" for row in table.rows), 0),
        Check("another result when run again", sum(row["again"] == "?" for row in table.rows), 0),
        Check("exit codes that say another end", sum(map(_misleads, table.rows)), 0),
    ]
    report.finish(options.output)
    sys.exit(not all(check.holds for check in report.checks))


if __name__ == "__main__":
    main()
