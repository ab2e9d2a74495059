"""Peak memory of ``vq.compress`` on large Linears; every scheme in a process of its own.

    python -m integration.benchmarks.compress_memory "km(k=16)" 4096 25088 1

prints the figures of one scheme, and of one layer of that size, as JSON. Memory is that of Linux'
``/proc/self/status``: ``getrusage`` would count what the parent process held when it started this
one.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table

SCHEMES = (
    "km(k=16)",
    "pq(k=16,dim=4)",
    "pq(k=16,dim=4,axis=out)",
    "pq(k=256,dim=8,codebooks=tensor)",
)
_STATUS = Path("/proc/self/status")


def peak_memory(
    report: Report, out: int, in_: int, schemes: tuple[str, ...] = SCHEMES, *, layers: int = 1,
    most: float = 3,
) -> None:  # fmt: skip
    """Peak resident memory over the weights' bytes, the weights themselves included."""
    if not _STATUS.exists():
        report.note("no /proc/self/status: peak memory is left out")
        return
    megabytes = layers * out * in_ * 4 / 1e6
    which = "one" if layers == 1 else f"{layers} layers of"
    table = Table(
        f"vq.compress of {which} {out}x{in_} Linear ({megabytes:.0f} MB)",
        {"scheme": "", "peak / weight": ".2f", "peak MB": ".0f", "seconds": ".1f", "rate": ".1f"},
    )
    for scheme in schemes:
        command = [sys.executable, "-m", __spec__.name, scheme, *map(str, (out, in_, layers))]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        table.rows.append(json.loads(done.stdout))
        report.checks.append(
            Check(f"memory of {scheme}: peak over weight", table.rows[-1]["peak / weight"], most)
        )
    report.add(table)


def _measure(scheme: str, out: int, in_: int, layers: int) -> dict[str, Any]:
    parsed = vq.parse_scheme(scheme)
    # The first fit starts thread pools and loads what is loaded lazily.
    vq.compress(nn.Linear(64, 64), parsed)
    before = resident("VmRSS")
    model = nn.Sequential(*[nn.Linear(in_, out, bias=False) for _ in range(layers)])
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for weight in model.parameters():
            weight.normal_(std=0.02, generator=generator)
    start = time.perf_counter()
    small = vq.compress(model, parsed)
    seconds = time.perf_counter() - start
    peak = resident("VmHWM") - before
    return {
        "scheme": scheme,
        "peak / weight": peak / (layers * out * in_ * 4),
        "peak MB": peak / 1e6,
        "seconds": seconds,
        "rate": vq.summary(small).layer_rate,
    }


def resident(key: str) -> int:
    line = next(line for line in _STATUS.read_text().splitlines() if line.startswith(key))
    return int(line.split()[1]) * 1024


if __name__ == "__main__":
    print(json.dumps(_measure(sys.argv[1], *map(int, sys.argv[2:]))))
