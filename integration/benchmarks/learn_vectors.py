"""Vectors beside numbers, both learned, at equal bytes of the file; and how fast they run.

    python -m integration.benchmarks.learn_vectors [--network lenet5] [--targets 8000] [--quick]

The dense layers that hold nearly all weights learn as vectors, all others as numbers. The training
images are used without labels: the float model teaches. The control is the fit of those layers, on
calibration data, with numbers of four centers elsewhere, and as many passes of `vq.finetune`; its
bytes are a target, too. Losses are absolute, in points of accuracy.

Steps are those of `vq.learn` by the processor time of the thread, medians, over those of training
the float model by its teacher. Speeds are of layers of the CNN with random codes at batch 1, by the
same clock, in turns.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim import Adam

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import (
    Report,
    Table,
    parse_arguments,
    race_of_processors,
    random_codes,
)
from integration.workloads import fashion_mnist
from vq_plugin.replace import assemble
from vq_plugin.training.loop import Training
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches

_VECTORS = tuple(f"pq(k={k},dim={dim},codebooks=tensor)" for k, dim in ((16, 4), (16, 8), (256, 8)))
_CONTROL = "pq(k=16,dim=8,codebooks=tensor)"
_NUMBERS = "numbers"
# As many centers as most layers of numbers end with.
_FAST = ("km(k=5,keep_zeros=true)", *_VECTORS)
_SHAPES = ((1024, 3136), (512, 1024))
_TURNS, _CALLS, _STEPS = 15, 20, 10


def measure(
    report: Report, name: str, targets: list[int], vectors: tuple[str, ...], epochs: int, batch: int
) -> None:
    """Adds the table of a network to a report."""
    workload, dense = settings.WORKLOADS[name], settings.DENSE[name]
    model, calibration = workload.model(), workload.calibration()
    data = (digits if name == "digits" else fashion_mnist).load().train
    loader = Batches(data, batch)
    tuning, test = workload.evaluate(model), workload.test(model)
    table = Table(
        f"{name}: {epochs} passes in batches of {batch}; {' and '.join(dense)} as vectors",
        {"by": "", "target": "d", "bytes": "d", "loss (tuning)": ".2f", "loss (test)": ".2f",
         "CPU s": ".0f"},
    )  # fmt: skip

    def keep(by: str, target: int | None, train: Callable[[], nn.Module]) -> int:
        start = time.process_time()
        small = train()
        seconds = time.process_time() - start
        with tempfile.TemporaryDirectory() as folder:
            nbytes = vq.save(small, Path(folder) / "model.vq", rest="int8")
            small = vq.load(Path(folder) / "model.vq", workload.model())
        table.rows.append({
            "by": by, "target": target, "bytes": nbytes, "CPU s": seconds,
            "loss (tuning)": 100 * (tuning - workload.evaluate(small)),
            "loss (test)": 100 * (test - workload.test(small)),
        })  # fmt: skip
        # The next takes minutes.
        print(table.rows[-1], flush=True)
        return nbytes

    def fitted() -> nn.Module:
        schemes = {**dict.fromkeys(dense, _CONTROL), "*": "km(k=4)"}
        small = vq.compress(model, schemes, calibration)
        return vq.finetune(small, loader, teacher=workload.model(), epochs=epochs)

    def learned(scheme: str, target: int) -> nn.Module:
        schemes = None if scheme == _NUMBERS else dict.fromkeys(dense, scheme)
        return vq.learn(
            model, loader, target_bytes=target, teacher=workload.model(), epochs=epochs,
            rest="int8", schemes=schemes,
        )  # fmt: skip

    for target in [keep(f"fit and finetune, {_CONTROL}", None, fitted), *targets]:
        for scheme in (_NUMBERS, *vectors):
            try:
                keep(scheme, target, lambda s=scheme, t=target: learned(s, t))  # type: ignore[misc]
            except ValueError as error:  # 256 centers of eight weights take 8 kB
                report.note(f"{scheme}: {error}")
    report.add(table)


class _Clocked:
    """Batches that note when each is asked for."""

    def __init__(self, batches: list[Tensor]) -> None:
        self.batches = batches
        self.times: list[float] = []

    def __iter__(self) -> Iterator[Tensor]:
        for batch in self.batches:
            self.times.append(time.thread_time())
            yield batch
        self.times.append(time.thread_time())

    @property
    def step(self) -> float:
        gaps = [after - before for before, after in zip(self.times, self.times[1:], strict=False)]
        return statistics.median(gaps[2:])


def steps(report: Report, name: str, batch: int) -> None:
    """Adds the table of the steps of training."""
    model = settings.WORKLOADS[name].model()
    dense = settings.DENSE[name]
    images = settings.WORKLOADS[name].calibration()[0][:1]
    batches = [torch.rand(batch, *images.shape[1:]) for _ in range(_STEPS)]
    plain, loader = assemble(model, {}), _Clocked(batches)
    Training("float", plain, Adam(plain.parameters(), 1e-4), model, None, 1, {}).run(loader, seed=0)
    base = loader.step
    table = Table(
        f"{name}: a step in batches of {batch}", {"by": "", "ms": ".1f", "over float": ".2f"}
    )
    table.rows.append({"by": "float", "ms": 1e3 * base, "over float": 1.0})
    for scheme in (_NUMBERS, *_VECTORS):
        schemes = None if scheme == _NUMBERS else dict.fromkeys(dense, scheme)
        loader = _Clocked(batches)
        vq.learn(model, loader, rate_weight=1e-7, epochs=1, schemes=schemes)
        table.rows.append({"by": scheme, "ms": 1e3 * loader.step, "over float": loader.step / base})
    report.add(table)


def speeds(report: Report) -> None:
    """Adds the table of the layers."""
    table = Table(
        "batch 1, one thread: how many times faster than nn.Linear",
        {"layer": "", "float us": ".0f", **dict.fromkeys(_FAST, ".1f")},
    )
    for out, inputs in _SHAPES:
        plain, x = nn.Linear(inputs, out), torch.randn(1, inputs)
        layers = {each: random_codes(plain, vq.parse_scheme(each)) for each in _FAST}
        seconds = _seconds({"float": plain, **layers}, x)
        table.rows.append({
            "layer": f"{out}x{inputs}", "float us": 1e6 * seconds["float"],
            **{each: seconds["float"] / seconds[each] for each in _FAST},
        })  # fmt: skip
    report.add(table)


@torch.no_grad()
def _seconds(layers: Mapping[str, nn.Module], x: Tensor) -> dict[str, float]:
    """Median processor time of a call, in turns."""
    calls = {name: partial(layer, x) for name, layer in layers.items()}
    return {name: each.median for name, each in race_of_processors(calls, _TURNS, _CALLS).items()}


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--network", choices=list(settings.DENSE), default="lenet_300_100")
        parser.add_argument("--targets", type=int, nargs="*", default=[8_000])
        parser.add_argument("--epochs", type=int, default=4)
        parser.add_argument("--batch", type=int, default=64)

    arguments = parse_arguments(__doc__.splitlines()[0], more)
    report = Report("learn_vectors", {"quick": arguments.quick})
    torch.set_num_threads(1)
    speeds(report)
    if arguments.quick:
        steps(report, "digits", 16)
        measure(report, "digits", [], _VECTORS[:1], 1, 64)
    else:
        steps(report, "fashion_mnist_cnn", 128)
        measure(
            report, arguments.network, arguments.targets, _VECTORS, arguments.epochs,
            arguments.batch,
        )  # fmt: skip
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
