"""What ``import vq_plugin`` adds to ``import torch``."""

from __future__ import annotations

import statistics
import subprocess
import sys

from integration.benchmarks.harness import Check, Report, Table

_TIMED = "import time; start = time.perf_counter(); import {}; print(time.perf_counter() - start)"


def import_time(report: Report, rounds: int) -> None:
    """Medians over fresh interpreters, interleaved; their start-up is not counted."""
    names = ("torch", "torch, vq_plugin")
    seconds: dict[str, list[float]] = {name: [] for name in names}
    # The first pair reads the files from the disk and is not counted.
    for turn in range(rounds + 1):
        for name in names:
            took = _seconds(name)
            if turn:
                seconds[name].append(took)
    medians = {name: statistics.median(values) for name, values in seconds.items()}
    table = Table(f"import, {rounds} fresh interpreters each", {"import": "", "seconds": ".3f"})
    table.rows = [{"import": name, "seconds": value} for name, value in medians.items()]
    added = medians["torch, vq_plugin"] - medians["torch"]
    table.rows.append({"import": "added by vq_plugin", "seconds": added})
    report.checks.append(Check("seconds that import vq_plugin adds", added, 0.3))
    report.add(table)


def _seconds(names: str) -> float:
    command = [sys.executable, "-c", _TIMED.format(names)]
    return float(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
