"""What calibrated ``vq.compress`` takes: seconds and memory, every network in a process of its own.

    python -m integration.benchmarks.calibrated_cost [--quick]

Seconds are medians of calls after the first. Memory is what the process holds at most beyond what
it held with the model and the data, against the largest input of a layer.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.compress_memory import resident
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads.fashion_mnist_resnet20 import ResNet20
from vq_plugin.seeded import seeded


class _Case(NamedTuple):
    """A model, batches for it, and a scheme."""

    model: nn.Module
    batches: list[Tensor]
    scheme: str


def _linear() -> _Case:
    mixed = torch.randn(512, 200) @ torch.randn(200, 3136) + torch.randn(512, 3136)
    return _Case(nn.Linear(3136, 1024), list(mixed.relu().split(128)), "km(k=4)")


def _resnet20() -> _Case:
    model = ResNet20().eval()
    model.features[0] = nn.Conv2d(3, 16, 3, padding=1, bias=False)
    return _Case(model, list(torch.rand(512, 3, 32, 32).split(128)), "km(k=16)")


def _efficientnet() -> _Case:
    from integration.workloads.zoo import efficientnet_lite0

    network = efficientnet_lite0.load()
    batches = torch.cat(network.calibration)[:16].split(16)
    return _Case(network.model, list(batches), "km(k=16)")


# With the seconds that they may take on two cores.
_CASES: dict[str, tuple[Callable[[], _Case], float]] = {
    "Linear 3136x1024, 512 samples": (_linear, 1.0),
    "ResNet-20, 512 images of 32x32": (_resnet20, 1.5),
    "EfficientNet-Lite0, 16 images of 224x224": (_efficientnet, 5.0),
}
_QUICK = ("Linear 3136x1024, 512 samples",)


def _measure(name: str, rounds: int) -> dict[str, Any]:
    with seeded(0):
        model, batches, scheme = _CASES[name][0]()
    parsed = vq.parse_scheme(scheme)
    # The first fit starts thread pools and loads what is loaded lazily.
    vq.compress(nn.Conv2d(4, 4, 3), parsed, [torch.rand(1, 4, 8, 8)])
    largest = _largest_input(model, batches)
    plain = [_seconds(lambda: vq.compress(model, parsed))[0] for _ in range(rounds)]
    before = resident("VmHWM")
    timed = [_seconds(lambda: vq.compress(model, parsed, batches)) for _ in range(rounds)]
    return {
        "network": name,
        "scheme": scheme,
        "plain s": statistics.median(plain),
        "calibrated s": statistics.median(seconds for seconds, _ in timed),
        "CPU s": statistics.median(cpu for _, cpu in timed),
        "largest input MB": largest / 1e6,
        "peak MB": (resident("VmHWM") - before) / 1e6,
    }


def _seconds(call: Callable[[], object]) -> tuple[float, float]:
    """Of a clock, and of the processor."""
    start, cpu = time.perf_counter(), time.process_time()
    call()
    return time.perf_counter() - start, time.process_time() - cpu


def _largest_input(model: nn.Module, batches: list[Tensor]) -> int:
    sizes: list[int] = []
    layers = [each for each in model.modules() if isinstance(each, nn.Linear | nn.Conv2d)]
    handles = [
        layer.register_forward_pre_hook(lambda _, given: sizes.append(given[0].nbytes))
        for layer in layers
    ]
    with torch.no_grad():
        model(batches[0])
    for handle in handles:
        handle.remove()
    return max(sizes)


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _options)
    if arguments.one:
        print(json.dumps(_measure(arguments.one, arguments.rounds)))
        return
    rounds = 1 if arguments.quick else arguments.rounds
    report = Report("calibrated_cost", {"quick": arguments.quick, "rounds": rounds})
    table = Table(
        "calibrated vq.compress",
        {
            "network": "", "scheme": "", "plain s": ".2f", "calibrated s": ".2f", "CPU s": ".2f",
            "largest input MB": ".1f", "peak MB": ".0f",
        },
    )  # fmt: skip
    for name in _QUICK if arguments.quick else _CASES:
        command = [sys.executable, "-m", __spec__.name, "--one", name, "--rounds", str(rounds)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        row = json.loads(done.stdout.splitlines()[-1])
        table.rows.append(row)
        most = 3 * row["largest input MB"] + 200
        report.checks += [
            Check(f"{name}: seconds", row["calibrated s"], _CASES[name][1]),
            Check(f"{name}: MB beyond 3 inputs and 200 MB", row["peak MB"] - most, 0),
        ]
    report.add(table)
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--rounds", type=int, default=5, help="calls of each (5)")
    parser.add_argument("--one", choices=_CASES, help="prints one network's figures as JSON")


if __name__ == "__main__":
    main()
