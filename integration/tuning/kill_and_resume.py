"""Searches that are killed again and again: is an evaluation lost or repeated, is the result the
same to the last byte?

    python -m integration.tuning.kill_and_resume --kills 50

Every search runs in a process of its own, which SIGKILL ends at a random time or right after an
evaluation; the next one goes on in the same folder. The evaluations write a log of their own, to
compare with the journal that each kill left.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import sys
import tempfile
import time
from collections import Counter
from dataclasses import dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from vq_plugin.tuning.identity import digest

KILLS_PER_RUN = 5
# Of one evaluation, in seconds: real ones take time, and most kills meet one.
PAUSE = 0.02
LADDER = (vq.KM(k=2), vq.KM(k=3), vq.KM(k=4), vq.KM(k=8), vq.PQ(k=8, dim=4), vq.KM(k=16), None)


@dataclass(frozen=True)
class LoggedAccuracy:
    """Right or wrong, sample by sample; a line in a log when it begins and when it ends."""

    split: str
    inputs: Tensor
    labels: Tensor
    log: Path

    def __call__(self, model: nn.Module) -> Tensor:
        name = digest(model.state_dict().items())
        self._write("begins", name)
        time.sleep(PAUSE)
        with torch.no_grad():
            right = model(self.inputs).argmax(1) == self.labels
        self._write("ends", name)
        # Errors are results too.
        if int(name, 16) % 7 == 0 and not right.all() and self.split == "tune":
            raise RuntimeError(f"out of memory: {name}")
        return right

    def _write(self, event: str, name: str) -> None:
        with self.log.open("ab", buffering=0) as file:
            file.write(f"{event} {self.split}:{name}\n".encode())


def search(folder: Path, log: Path) -> None:
    """The search that is killed: small, and the same every time."""
    torch.manual_seed(0)
    hidden = [layer for _ in range(3) for layer in (nn.Linear(32, 32, bias=False), nn.ReLU())]
    model, inputs = nn.Sequential(*hidden, nn.Linear(32, 5, bias=False)), torch.randn(600, 32)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    accuracies = [LoggedAccuracy(split, inputs, labels, log) for split in ("tune", "test")]
    vq.tune(
        model,
        accuracies[0],
        vq.LossBudget(absolute=0.1),
        [inputs[:100]],
        candidates=LADDER,
        test=accuracies[1],
        folder=folder,
    )


@dataclass
class Session:
    """One process of a search, from its start to its death.

    Attributes:
        began: Evaluations that began.
        ended: Evaluations that ended, in order.
        journaled: How many of them the journal kept; ``None`` if the search came to its end.
    """

    began: list[str]
    ended: list[str]
    journaled: int | None


@dataclass
class Run:
    """One search, however many processes it took."""

    folder: Path
    sessions: list[Session] = field(default_factory=list)

    @property
    def killed(self) -> list[tuple[int, int]]:
        """Evaluations that ended, and those of them in the journal, by session."""
        return [(len(s.ended), s.journaled) for s in self.sessions if s.journaled is not None]

    @property
    def between(self) -> int:
        """Kills between the end of an evaluation and its line in the journal."""
        return sum(ended - kept == 1 for ended, kept in self.killed)

    @property
    def lost(self) -> int:
        """Evaluations that ended and are not in the journal, but for the last before a kill."""
        return sum(abs(ended - kept) for ended, kept in self.killed) - self.between

    @property
    def repeated(self) -> int:
        """Evaluations that began although the journal had them.

        The float model, which comes first, is evaluated twice: does the metric say so again?
        """
        kept: Counter[str] = Counter()
        twice = self.sessions[0].began[:1]
        repeated = 0
        for session in self.sessions:
            for name, count in Counter(session.began).items():
                repeated += max(0, kept[name] + count - (2 if name in twice else 1))
            kept.update(session.ended[: session.journaled])
        return repeated


def run(folder: Path, kills: int, seconds: float, rng: random.Random) -> Run:
    """One search, killed so many times unless it ends before.

    Args:
        folder: Its folder; the log is beside it.
        kills: How often.
        seconds: How long one takes when it is left alone.
        rng: When to kill.

    Returns:
        Its sessions.
    """
    log, found = folder.with_suffix(".log"), Run(folder)
    fork = multiprocessing.get_context("fork")
    while not found.sessions or found.sessions[-1].journaled is not None:
        seen, kept = len(_lines(log)), len(_lines(folder / "journal.jsonl"))
        process = fork.Process(target=search, args=(folder, log))
        process.start()
        if len(found.sessions) < kills:
            _kill(process, log, seconds, rng)
        process.join()
        journal = folder / "journal.jsonl"
        # The journal is removed after the reports are written.
        ended = process.exitcode == 0 or (
            not journal.exists() and (folder / "report.json").exists()
        )
        if not ended and process.exitcode != -9:
            raise RuntimeError(f"the search failed with exit code {process.exitcode}")
        events = [line.split() for line in _lines(log)[seen:]]
        found.sessions.append(
            Session(
                [name for event, name in events if event == "begins"],
                [name for event, name in events if event == "ends"],
                None if ended else len(_lines(journal)) - kept,
            )
        )
    return found


def _kill(process: BaseProcess, log: Path, seconds: float, rng: random.Random) -> None:
    if rng.random() < 0.5:
        process.join(rng.uniform(0, seconds / 2))
    else:
        # Where it hurts: while the journal is written.
        ends = len(_ends(log)) + rng.randint(1, 6)
        while process.is_alive() and len(_ends(log)) < ends:
            time.sleep(1e-4)
        time.sleep(rng.uniform(0, 2e-3))
    process.kill()


def _lines(path: Path) -> list[str]:
    """Complete lines; the next session drops one that is not."""
    data = path.read_bytes() if path.exists() else b""
    return data.decode(errors="replace").split("\n")[:-1]


def _ends(log: Path) -> list[str]:
    return [line for line in _lines(log) if line.startswith("ends")]


def outcome(folder: Path) -> tuple[bytes, list[dict[str, Any]]]:
    """The compressed file, and the trials but for their times."""
    trials = json.loads((folder / "report.json").read_text())["result"]["trials"]
    kept = [{key: v for key, v in trial.items() if key != "seconds"} for trial in trials]
    return (folder / "model.vq").read_bytes(), kept


def kill_and_resume(kills: int, seed: int, place: Path) -> tuple[list[Run], int]:
    """Kills searches until there were so many kills.

    Args:
        kills: How many.
        seed: Seed of the times.
        place: Where to keep the folders.

    Returns:
        The runs, and how many ended with other trials or another file than one left alone.
    """
    rng = random.Random(seed)
    start = time.perf_counter()
    alone = run(place / "alone", 0, 0.0, rng)
    seconds = time.perf_counter() - start
    expected, runs, different = outcome(alone.folder), list[Run](), 0
    while (left := kills - sum(len(r.killed) for r in runs)) > 0:
        folder = place / f"run{len(runs)}"
        runs.append(run(folder, min(left, KILLS_PER_RUN), seconds, rng))
        different += outcome(folder) != expected
    return runs, different


def main() -> None:
    def add(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--kills", type=int, default=50, help="how many (50; --quick: 5)")
        parser.add_argument("--seed", type=int, default=0)

    options = parse_arguments(str(__doc__), add)
    kills = 5 if options.quick else options.kills
    report = Report(
        "kill_and_resume", {"quick": options.quick, "kills": kills, "seed": options.seed}
    )
    torch.set_num_threads(1)  # before any work: the processes are forks of this one
    with tempfile.TemporaryDirectory() as place:
        runs, different = kill_and_resume(kills, options.seed, Path(place))
        trials = len(outcome(Path(place) / "alone")[1])
    columns = ("killed", "evaluated by session", "in the journal", "lost", "repeated")
    table = Table("Searches", dict.fromkeys(columns, ""))
    for search_run in runs:
        row = (
            len(search_run.killed),
            " ".join(str(len(s.ended)) for s in search_run.sessions),
            " ".join(str(kept) for _, kept in search_run.killed),
            search_run.lost,
            search_run.repeated,
        )
        table.rows.append(dict(zip(columns, row, strict=True)))
    report.add(table)
    between = sum(r.between for r in runs)
    report.note(
        f"{trials} trials each; {between} kills fell between the end of an evaluation and its line "
        "in the journal: these evaluations are made again, as they must be"
    )
    report.checks += [
        Check("kills", sum(len(r.killed) for r in runs), kills, at_least=True),
        Check("evaluations lost", sum(r.lost for r in runs), 0),
        Check("evaluations repeated", sum(r.repeated for r in runs), 0),
        Check("searches with another result", different, 0),
    ]
    report.finish(options.output)
    sys.exit(not all(check.holds for check in report.checks))


if __name__ == "__main__":
    main()
