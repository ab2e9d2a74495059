"""What unlabelled images do for the fit, without any training, at a row of rates.

    python -m integration.benchmarks.calibrated [--workload fashion_mnist_cnn|resnet20] [--quick]

The same settings are fitted to the weights alone (plain), with errors weighed by the mean square of
the input that each weight meets (squares), and to the layer's output (calibrated), as
``vq.compress(model, schemes, calibration=...)`` does. Calibration takes 512 images of the training
split without their labels; three different sets of them where there are three losses.
Losses are absolute, in points, of the untouched test split, but for that of the tuning split, by
which settings were chosen. Norms: batch norms estimated again from the same images. Compensated:
layers left in float make up for the error, by ``vq.compensate``.
"""

from __future__ import annotations

import argparse
import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from statistics import fmean
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads import fashion_mnist
from vq_plugin.calibration import input_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.replace import assemble
from vq_plugin.select import select, slots_by_name
from vq_plugin.slot_fit import fit_named
from vq_plugin.workloads import digits

Schemes = Mapping[str, vq.Scheme]
Name = str

_IMAGES, _BATCH = 512, 128
_LARGE, _SECOND = "classifier.0", "classifier.3"


def _dense(large: str, second: str | None = None) -> dict[str, str]:
    return {_LARGE: large, _SECOND: second or large}


# By rate; the settings that are promised stand first.
_CNN = (
    _dense("pq(k=256,dim=13,codebooks=tensor)", "pq(k=16,dim=16,codebooks=tensor)"),
    _dense("km(k=4)"),
    _dense("pq(k=16,dim=4,axis=out)"),
    _dense("pq(k=8,dim=4,axis=out)"),
    _dense("pq(k=16,dim=8,axis=out)"),
    _dense("pq(k=64,dim=12,codebooks=tensor)"),
    _dense("pq(k=16,dim=8,codebooks=tensor)"),
)
_RESNET = (
    {"*": "km(k=8)"},
    {"*": "km(k=16)"},
    {"*": "km(k=5)"},
    {"*": "km(k=4)"},
    {"*": "pq(k=64,dim=3,codebooks=tensor)"},
)
_QUICK = ({"classifier.0": "pq(k=16,dim=4,axis=out)"},)


class Bench:
    """A trained model and the moments of its layers, of several sets of images."""

    def __init__(self, workload: ModuleType, images: Tensor, sets: int) -> None:
        self.workload, self.model = workload, workload.model()
        self.tuning, self.test = workload.evaluate(self.model), workload.test(self.model)
        self.batches = [
            list(torch.split(images[n * _IMAGES : (n + 1) * _IMAGES], _BATCH)) for n in range(sets)
        ]
        self._moments: dict[tuple[Name, int], Moments] = {}

    def layers(self, schemes: Mapping[str, str]) -> dict[Name, vq.Scheme]:
        parsed: dict[Any, vq.Scheme | None] = {
            pattern: vq.parse_scheme(text) for pattern, text in schemes.items()
        }
        return select(self.model, parsed)

    def moments(self, names: list[Name], number: int) -> dict[Name, Moments]:
        missing = [name for name in names if (name, number) not in self._moments]
        if missing:
            slots = slots_by_name(self.model, missing).values()
            found = input_moments(self.model, slots, self.batches[number])
            self._moments.update(((name, number), own) for name, own in found.items())
        return {name: self._moments[name, number] for name in names}

    def fit(
        self, chosen: Schemes, number: int, seen: Callable[[Moments], Moments | None]
    ) -> nn.Module:
        moments = self.moments(list(chosen), number)
        slots = slots_by_name(self.model, chosen)
        return assemble(
            self.model,
            {
                name: fit_named(
                    name, slots[name].weight, scheme, moments=seen(moments[name]), seed=number
                )
                for name, scheme in chosen.items()
            },
        )  # fmt: skip

    def loss(self, small: nn.Module, split: str) -> float:
        """In points, of ``"evaluate"`` (the tuning split) or ``"test"``."""
        baseline = self.tuning if split == "evaluate" else self.test
        score: float = getattr(self.workload, split)(small)
        return 100 * (baseline - score)


_METHODS: dict[str, Callable[[Moments], Moments | None]] = {
    "plain": lambda _: None,
    "squares": lambda moments: replace(moments, second=None, mean=None),
    "calibrated": lambda moments: moments,
}


def file_rate(model: nn.Module, small: nn.Module) -> float:
    """The float32 ``state_dict`` over the file, with half precision for what is not compressed."""
    plain = sum(
        4 * value.numel() if value.is_floating_point() else value.nbytes
        for value in model.state_dict().values()
    )
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.vq"
        vq.save(small, path, rest="float16")
        return float(plain / path.stat().st_size)


def measure(bench: Bench, schemes: Mapping[str, str], sets: int) -> dict[str, Any]:
    """One row: losses of all methods, and what batch norms estimated again make of them."""
    chosen = bench.layers(schemes)
    row: dict[str, Any] = {"schemes": " + ".join(dict.fromkeys(schemes.values()))}
    for name, seen in _METHODS.items():
        losses = []
        for number in range(sets if name == "calibrated" else 1):
            small = bench.fit(chosen, number, seen)
            losses.append(bench.loss(small, "test"))
            if name == "calibrated" and _floats(small):
                compensated = vq.compensate(
                    copy.deepcopy(small), bench.model, bench.batches[number]
                )
                row.setdefault("compensated", []).append(bench.loss(compensated, "test"))
            if number:
                continue
            if name == "calibrated":
                row["tuning"] = bench.loss(small, "evaluate")
                row["layer rate"] = vq.summary(small).layer_rate
                row["file rate"] = file_rate(bench.model, small)
            if name != "squares" and _has_norms(small):
                vq.reestimate_norms(small, [torch.cat(bench.batches[0])])
                row[f"{name}, norms"] = bench.loss(small, "test")
        row[name] = losses
    return row


def _floats(model: nn.Module) -> bool:
    return any(type(module) is nn.Linear for module in model.modules())


def _has_norms(model: nn.Module) -> bool:
    return any(isinstance(module, nn.BatchNorm2d) for module in model.modules())


def table_of(rows: list[dict[str, Any]], title: str) -> Table:
    numbers = ("layer rate", "file rate")
    losses = (
        "plain", "squares", "calibrated", "compensated", "tuning",
        "plain, norms", "calibrated, norms",
    )  # fmt: skip
    formats = {"schemes": "", **dict.fromkeys(numbers, ".2f")}
    table = Table(title, formats | dict.fromkeys((x for x in losses if x in rows[0]), ""))
    for row in sorted(rows, key=lambda row: row["layer rate"]):
        table.rows.append({
            key: value if key in numbers or key == "schemes" else _text(value)
            for key, value in row.items()
        })  # fmt: skip
    return table


def _text(losses: float | list[float]) -> str:
    values = losses if isinstance(losses, list) else [losses]
    return " ".join(f"{loss:.2f}" for loss in values)


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _options)
    quick = arguments.quick
    name = "digits" if quick else arguments.workload
    sets = 1 if quick else arguments.sets
    report = Report(f"calibrated_{name}", {"quick": quick, "workload": name, "sets": sets})
    data = (digits if quick else fashion_mnist).load()
    bench = Bench(settings.WORKLOADS[name], data.train.images, sets)
    rows = []
    for schemes in _QUICK if quick else {"resnet20": _RESNET, "fashion_mnist_cnn": _CNN}[name]:
        rows.append(measure(bench, schemes, sets))
        print(rows[-1], flush=True)
    title = (
        f"{name}: loss in points, accuracy {100 * bench.tuning:.2f} % tuning, "
        f"{100 * bench.test:.2f} % test"
    )
    report.add(table_of(rows, title))
    if not quick:
        check(report, rows, name)
    report.finish(arguments.output)


def check(report: Report, rows: list[dict[str, Any]], workload: str) -> None:
    """The first setting holds what is promised, and calibration is never worse than none."""
    first, rate, least = rows[0], "layer rate", 55.0
    if workload == "resnet20":
        rate, least = "file rate", 8.0
    report.checks.append(Check(f"{rate} of {first['schemes']}", first[rate], least, at_least=True))
    report.checks.append(Check("its worst loss (test)", max(first["calibrated"]), 1))
    for row in rows:
        for other in ("plain", "squares"):
            more = fmean(row["calibrated"]) - fmean(row[other])
            report.checks.append(Check(f"{row['schemes']}: points beyond {other}", more, 0))


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--workload", choices=("fashion_mnist_cnn", "resnet20"), default="fashion_mnist_cnn"
    )
    parser.add_argument("--sets", type=int, default=3, help="sets of images (3)")


if __name__ == "__main__":
    main()
