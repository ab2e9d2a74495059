"""A step of training on codes, forward and backward, against that of the float layer.

    python -m integration.benchmarks.training_speed [--quick]

Gradients of inputs, codebooks and biases; no optimizer. On one thread, by the processor time of the
thread, both in turns, medians.
"""

from __future__ import annotations

import statistics
import time

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    random_codes,
    torch_threads,
)

_LIMIT = 1.3
_LINEAR = ("pq(k=16,dim=4)", "pq(k=16,dim=8,codebooks=tensor)", "pq(k=16,dim=4,axis=out)",
           "pq(k=256,dim=8)", "rq(k=16,stages=2,dim=4)", "km(k=16)", "km(k=256)")  # fmt: skip
_CONVOLUTION = ("pq(k=16,dim=4)", "pq(k=16,dim=4,layout=channels)",
                "pq(k=256,dim=8,codebooks=tensor)", "km(k=16)")  # fmt: skip
# Outputs, inputs, samples; channels, outputs, side, kernel, groups, images.
_SHAPES = ((512, 512, 128), (1024, 3136, 128), (2048, 2048, 32), (256, 256, 4096))
_CONVOLUTIONS = ((64, 64, 28, 3, 1, 8), (256, 256, 14, 3, 1, 8), (256, 256, 14, 1, 1, 8),
                 (128, 128, 14, 3, 128, 16))  # fmt: skip


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("training_speed", {"quick": arguments.quick})
    turns = 3 if arguments.quick else 11
    with torch_threads(1):
        linear = [
            (f"{out}x{in_}", nn.Linear(in_, out), torch.randn(samples, in_))
            for out, in_, samples in (((48, 64, 8),) if arguments.quick else _SHAPES)
        ]
        _race(report, "nn.Linear", linear, _LINEAR, turns)
        convolutions = [
            (f"{in_}-{out} {kernel}x{kernel} {side}x{side}" + f" {groups} groups" * (groups > 1),
             nn.Conv2d(in_, out, kernel, padding=kernel // 2, groups=groups),
             torch.randn(images, in_, side, side))
            for in_, out, side, kernel, groups, images
            in (_CONVOLUTIONS[:1] if arguments.quick else _CONVOLUTIONS)
        ]  # fmt: skip
        _race(report, "nn.Conv2d", convolutions, _CONVOLUTION, turns)
    report.finish(arguments.output)


def _race(
    report: Report,
    kind: str,
    layers: list[tuple[str, nn.Module, Tensor]],
    schemes: tuple[str, ...],
    turns: int,
) -> None:
    table = Table(
        f"{kind}: step on codes / float step, 1 thread",
        {"shape": "", "batch": "d", "float32 ms": ".1f", **dict.fromkeys(schemes, ".2f")},
    )
    for shape, plain, x in layers:
        row: dict[str, object] = {"shape": shape, "batch": len(x)}
        for scheme in schemes:
            small = random_codes(plain, vq.parse_scheme(scheme))
            seconds, row[scheme] = _steps(plain, small, x, turns)
            row["float32 ms"] = seconds * 1e3
        table.rows.append(row)
    report.add(table)
    worst = max(float(row[scheme]) for row in table.rows for scheme in schemes)
    report.checks.append(Check(f"{kind}: the slowest step", worst, _LIMIT))


def _steps(plain: nn.Module, small: nn.Module, x: Tensor, turns: int) -> tuple[float, float]:
    """Median seconds of the float step, and the ratio of ours to it."""
    with torch.no_grad():
        grad = torch.randn_like(plain(x))
    times: dict[nn.Module, list[float]] = {plain: [], small: []}
    for _ in range(turns + 1):
        for layer, found in times.items():
            layer.zero_grad(set_to_none=True)
            inputs = x.clone().requires_grad_()
            start = time.thread_time()
            layer(inputs).backward(grad)
            found.append(time.thread_time() - start)
    ours, theirs = (statistics.median(times[layer][1:]) for layer in (small, plain))
    return theirs, ours / theirs


if __name__ == "__main__":
    main()
