"""Models of very many small layers: processor time of every call that goes through all of them.

python -m integration.benchmarks.layers [--rounds 3] [--quick]
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from vq_plugin.checkpoint import read_header

COUNTS = (1250, 2500, 5000)
CALLS = ("compress", "save", "load", "read_header", "summary")


def layers(report: Report, counts: tuple[int, ...], rounds: int) -> None:
    """Linear layers of 8 x 8, all in one nn.Sequential."""
    table = Table(
        "Models of small layers, processor seconds of all threads, the least of the rounds",
        {"layers": "", **dict.fromkeys(CALLS, ".2f")},
    )
    for count in counts:
        rows = [_seconds(count) for _ in range(rounds)]
        least = {call: min(row[call] for row in rows) for call in CALLS}
        table.rows.append({"layers": count, **least})
    report.add(table)
    first, last = table.rows[0], table.rows[-1]
    ratio = last["layers"] / first["layers"]
    for call in CALLS:
        grown = last[call] / first[call] / ratio
        report.checks.append(Check(f"{call} of {ratio:g} times the layers, of so many", grown, 1.4))


def _model(count: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(count)))


def _seconds(count: int) -> dict[str, float]:
    found: dict[str, float] = {}

    def timed(call: str, function: Callable[[], nn.Module | object]) -> object:
        start = time.process_time()
        result = function()
        found[call] = time.process_time() - start
        return result

    model, fresh = _model(count), _model(count)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "m.vq"
        small = timed("compress", lambda: vq.compress(model, vq.KM(k=16)))
        assert isinstance(small, nn.Module)
        timed("save", lambda: vq.save(small, path))
        timed("load", lambda: vq.load(path, fresh))
        timed("read_header", lambda: read_header(path))
        timed("summary", lambda: str(vq.summary(small)))
    return found


def main() -> None:
    arguments = parse_arguments(
        __doc__ or "", lambda parser: parser.add_argument("--rounds", type=int, default=3)
    )
    counts, rounds = ((20, 80), 1) if arguments.quick else (COUNTS, arguments.rounds)
    report = Report("layers", {"quick": arguments.quick, "rounds": rounds})
    layers(report, counts, rounds)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
