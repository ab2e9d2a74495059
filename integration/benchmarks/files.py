"""Size of files beside the entropy of their codes, and how fast they are written and read.

python -m integration.benchmarks.files [--rounds 3] [--quick]
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    normal_weight,
    parse_arguments,
    torch_threads,
)

# What is left of the weights, and the scheme.
CASES: list[tuple[float, vq.Scheme]] = [
    (1.0, vq.KM(k=16)),
    (0.05, vq.KM(k=16, keep_zeros=True)),
    (1.0, vq.PQ(k=16, dim=4)),
    (1.0, vq.PQ(k=256, dim=8)),
    (0.05, vq.RQ(k=16, stages=2, dim=4, codebooks="tensor")),
]
FORMATS = {
    "kept": ".0%",
    "scheme": "",
    "packed kB": ".1f",
    "file kB": ".1f",
    "over entropy": ".3f",
    "save MB/s": ".0f",
    "load MB/s": ".0f",
}


def files(report: Report, size: int, rounds: int) -> None:
    """One layer; megabytes are those of its float32 weights, entropies those of each stage."""
    table = Table(f"Files of a {size}x{size} layer, one thread, processor time", FORMATS)
    for kept, scheme in CASES:
        layer = nn.Linear(size, size, bias=False)
        weight = normal_weight(size, size)
        with torch.no_grad():
            least = np.quantile(weight.abs().numpy(), 1 - kept)
            layer.weight.copy_(weight * (weight.abs() >= least))
        small = vq.compress(layer, scheme)
        table.rows.append({"kept": kept, "scheme": str(scheme), **_row(layer, small, rounds)})
    report.add(table)
    for row in table.rows:
        name = f"of {row['scheme']}, {row['kept']:.0%} kept"
        report.checks += [
            Check(f"file {name} over entropy", row["over entropy"], 1.02),
            Check(f"save {name}, MB/s", row["save MB/s"], 170, at_least=True),
            Check(f"load {name}, MB/s", row["load MB/s"], 240, at_least=True),
        ]


def _row(layer: nn.Linear, small: nn.Module, rounds: int) -> dict[str, float]:
    weight = small.codebook_weight  # type: ignore[operator]
    with tempfile.TemporaryDirectory() as folder, torch_threads(1):
        path = Path(folder) / "m.vq"
        calls = {"save": lambda: vq.save(small, path), "load": lambda: vq.load(path, layer)}
        seconds = {name: _seconds(call, rounds) for name, call in calls.items()}
        nbytes = path.stat().st_size
    megabytes = 4 * layer.weight.numel() / 1e6
    bound = sum(_entropy(stage.numpy()) for stage in weight.codes) + weight.codebooks.nbytes
    return {
        "packed kB": weight.nbytes / 1e3,
        "file kB": nbytes / 1e3,
        "over entropy": nbytes / bound,
        **{f"{name} MB/s": megabytes / one for name, one in seconds.items()},
    }


def _seconds(call: Callable[[], object], rounds: int) -> float:
    """Of the processor, the median: other work on the machine does not count."""
    call()
    times = []
    for _ in range(rounds):
        start = time.process_time()
        call()
        times.append(time.process_time() - start)
    return statistics.median(times)


def _entropy(codes: np.ndarray) -> float:
    """Bytes, by the frequencies of the codes."""
    counts = np.bincount(codes.reshape(-1))
    counts = counts[counts > 0]
    return float(-(counts * np.log2(counts / counts.sum())).sum() / 8)


def main() -> None:
    arguments = parse_arguments(
        __doc__ or "", lambda parser: parser.add_argument("--rounds", type=int, default=3)
    )
    rounds = 1 if arguments.quick else arguments.rounds
    report = Report("files", {"quick": arguments.quick, "rounds": rounds})
    files(report, 64 if arguments.quick else 4096, rounds)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
