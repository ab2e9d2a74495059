"""A step of training on codes, forward and backward, against that of the float layer.

    python -m integration.benchmarks.training_speed [--quick]

Gradients of inputs, codebooks and biases; no optimizer. And a step of ``vq.learn``, with Adam,
against one of the float network with Adam and the same teacher, and without one: untrained networks
and random images, whole passes less the start and the end. On one thread, by the processor time of
the thread, both in turns, medians.
"""

from __future__ import annotations

import copy
import statistics
import time
from collections.abc import Callable

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
from integration.workloads.fashion_mnist_cnn import FashionCNN
from integration.workloads.fashion_mnist_lenet5 import LeNet5
from integration.workloads.fashion_mnist_lenet_300_100 import LeNet300100
from integration.workloads.fashion_mnist_resnet20 import ResNet20
from vq_plugin.seeded import seeded

_LIMIT = 1.3
# With a teacher.
_LEARN_LIMIT = 2.0
_LINEAR = ("pq(k=16,dim=4)", "pq(k=16,dim=8,codebooks=tensor)", "pq(k=16,dim=4,axis=out)",
           "pq(k=256,dim=8)", "rq(k=16,stages=2,dim=4)", "km(k=16)", "km(k=256)")  # fmt: skip
_CONVOLUTION = ("pq(k=16,dim=4)", "pq(k=16,dim=4,layout=channels)",
                "pq(k=256,dim=8,codebooks=tensor)", "km(k=16)")  # fmt: skip
# Outputs, inputs, samples; channels, outputs, side, kernel, groups, images.
_SHAPES = ((512, 512, 128), (1024, 3136, 128), (2048, 2048, 32), (256, 256, 4096))
_CONVOLUTIONS = ((64, 64, 28, 3, 1, 8), (256, 256, 14, 3, 1, 8), (256, 256, 14, 1, 1, 8),
                 (128, 128, 14, 3, 128, 16))  # fmt: skip

# With their images in a batch, and batches.
_NETWORKS = (("LeNet-300-100", LeNet300100, 64, 60), ("LeNet-5", LeNet5, 64, 20),
             ("CNN", FashionCNN, 64, 8), ("ResNet-20", ResNet20, 128, 3))  # fmt: skip


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
        _learn(report, arguments.quick)
    report.finish(arguments.output)


def _learn(report: Report, quick: bool) -> None:
    table = Table(
        "vq.learn: step / float step, 1 thread",
        {
            "network": "", "batch": "d", "weights": ",d", "learn ms": ".1f",
            "taught float ms": ".1f", "ratio": ".2f", "float ms": ".1f", "ratio without": ".2f",
        },
    )  # fmt: skip
    networks = _NETWORKS[:1] if quick else _NETWORKS
    table.rows += [_learn_row(*network, 1 if quick else 3) for network in networks]
    report.add(table)
    worst = max(float(row["ratio"]) for row in table.rows)
    report.checks.append(Check("vq.learn: the slowest step", worst, _LEARN_LIMIT))


def _learn_row(
    name: str, network: Callable[[], nn.Module], samples: int, count: int, turns: int
) -> dict[str, object]:
    with seeded(0):
        model = network()
        batches = [torch.randn(samples, 1, 28, 28) for _ in range(count)]
    teacher = copy.deepcopy(model).eval()
    ways: dict[str, Callable[[int], object]] = {
        "learn ms": lambda passes: vq.learn(model, batches, rate_weight=1e-5, epochs=passes),
        "taught float ms": lambda passes: _float_passes(model, batches, passes, teacher),
        "float ms": lambda passes: _float_passes(model, batches, passes, None),
    }
    times: dict[str, list[float]] = {way: [] for way in ways}
    for _ in range(turns):
        for way, run in ways.items():
            short, long = _seconds(run, 1), _seconds(run, 3)
            times[way].append((long - short) / (2 * count) * 1e3)
    found = {way: statistics.median(each) for way, each in times.items()}
    return {
        "network": name,
        "batch": samples,
        "weights": sum(each.numel() for each in model.parameters()),
        **found,
        "ratio": found["learn ms"] / found["taught float ms"],
        "ratio without": found["learn ms"] / found["float ms"],
    }


def _float_passes(
    model: nn.Module, batches: list[Tensor], passes: int, teacher: nn.Module | None
) -> None:
    """Trains a copy, with the outputs of a teacher or fixed ones as targets."""
    model = copy.deepcopy(model).train()
    optimizer = torch.optim.Adam(model.parameters(), lr=2e-3)
    target = torch.full((len(batches[0]), 10), 0.1)
    for _ in range(passes):
        for images in batches:
            if teacher is not None:
                with torch.no_grad():
                    target = teacher(images).softmax(1)
            loss = nn.functional.cross_entropy(model(images), target)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()


def _seconds(run: Callable[[int], object], passes: int) -> float:
    start = time.thread_time()
    run(passes)
    return time.thread_time() - start


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
