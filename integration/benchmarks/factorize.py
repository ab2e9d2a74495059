"""SVD beside KM and PQ at equal bytes, bases of kernels, merged neurons: one CNN, three trainings.

    python -m integration.benchmarks.factorize [--parts dense merged] [--seeds 0 1 2] [--quick]

Three parts, and a report of each: dense layers, the larger convolution, merged neurons.

The Fashion-MNIST CNN, trained from several seeds (three minutes each, once). Nothing is trained
after that. Losses are points of accuracy on the test split: the mean of the seeds, and the worst.
Rates are those of the weights that a row changes: float32 for factors, codes and codebooks at
⌈log₂ k⌉ bits and float16 for what is coded.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    race_of_processors,
)
from integration.workloads import fashion_mnist, fashion_mnist_cnn
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Samples
from vq_plugin.workloads.training import accuracy

Make = Callable[[nn.Module, Sequence[Tensor] | None], nn.Module]


class Bench:
    """Trained models, and the data that they are measured and calibrated with."""

    def __init__(self, models: Sequence[nn.Module], test: Samples, data: list[Tensor]) -> None:
        self.models, self.test, self.data = models, test, data
        self.accuracies = [100 * accuracy(model, *test) for model in models]

    @torch.no_grad()
    def heads(self) -> Bench:
        """The dense layers alone, with what reaches them."""
        # They are all that changes, and most of the time would go into what does not.
        return _Heads(self.models, self.test, self.data)

    def losses(self, make: Make, *, calibrated: bool) -> tuple[list[float], list[nn.Module]]:
        """Points lost by what is made of each model, and what was made."""
        made = [make(model, self.data if calibrated else None) for model in self.models]
        after = [100 * accuracy(model, *self.test) for model in made]
        return [a - b for a, b in zip(self.accuracies, after, strict=True)], made


class _Heads(Bench):
    def __init__(self, models: Sequence[nn.Module], test: Samples, data: list[Tensor]) -> None:
        self.models: list[Any] = [model.classifier for model in models]  # type: ignore[misc]
        features = [model.features.eval() for model in models]  # type: ignore[operator, union-attr]
        self._tests = [
            Samples(torch.cat([f(x).flatten(1) for x in test.images.split(500)]), test.labels)
            for f in features
        ]
        self._datas = [[f(x).flatten(1) for x in data] for f in features]
        pairs = zip(self.models, self._tests, strict=True)
        self.accuracies = [100 * accuracy(model, *test) for model, test in pairs]

    def losses(self, make: Make, *, calibrated: bool) -> tuple[list[float], list[nn.Module]]:
        made = [
            make(model, data if calibrated else None)
            for model, data in zip(self.models, self._datas, strict=True)
        ]
        pairs = zip(made, self._tests, strict=True)
        after = [100 * accuracy(model, *test) for model, test in pairs]
        return [a - b for a, b in zip(self.accuracies, after, strict=True)], made


def weights_of(model: nn.Module) -> int:
    """Bytes of the weights, coded or not, without biases and norms."""
    coded = {row.name: row.nbytes for row in vq.summary(model).rows} if _is_coded(model) else {}
    plain = (m for m in model.modules() if type(m) in (nn.Linear, nn.Conv2d))
    return sum(coded.values()) + sum(4 * m.weight.numel() for m in plain)


def _is_coded(model: nn.Module) -> bool:
    return any(type(module).__name__.startswith("Codebook") for module in model.modules())


@torch.no_grad()
def multiplications(model: nn.Module, image: Tensor) -> int:
    """Multiplications of Linear and convolutions for one image."""
    counts: list[int] = []

    def count(module: Any, _: object, output: Tensor) -> None:
        each = module.weight[0].numel()
        counts.append(output.numel() * each)

    layers = [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]
    handles = [layer.register_forward_hook(count) for layer in layers]
    model(image)
    for handle in handles:
        handle.remove()
    return sum(counts)


@torch.no_grad()
def process_seconds(models: Sequence[nn.Module], image: Tensor, turns: int) -> list[float]:
    """Median seconds of the process for one image, in turns."""
    calls = {str(number): partial(model, image) for number, model in enumerate(models)}
    return [found.median for found in race_of_processors(calls, turns, repeats=3).values()]


def made(
    model: nn.Module, data: Sequence[Tensor] | None, factors: Any, scheme: vq.Scheme | None
) -> nn.Module:
    """Factorized, then coded."""
    small = model if factors is None else vq.factorize(model, factors, data)
    return small if scheme is None else vq.compress(small, _all_but_last(small, scheme), data)


def _all_but_last(model: nn.Module, scheme: vq.Scheme) -> Any:
    *_, last = (name for name, module in model.named_modules() if isinstance(module, nn.Linear))
    return {nn.Linear: scheme, last: None}


DENSE: tuple[tuple[vq.SVD | None, vq.Scheme | None], ...] = (
    (vq.SVD(rate=4), None),
    (vq.SVD(rate=8), None),
    (vq.SVD(rate=16), None),
    (vq.SVD(rate=2), vq.KM(k=256)),
    (vq.SVD(rate=4), vq.KM(k=256)),
    (vq.SVD(rate=8), vq.KM(k=256)),
    (vq.SVD(rate=2), vq.KM(k=16)),
    (vq.SVD(rate=4), vq.KM(k=16)),
    (vq.SVD(rate=8), vq.KM(k=16)),
    (None, vq.KM(k=256)),
    (None, vq.KM(k=16)),
    (None, vq.KM(k=4)),
    (None, vq.KM(k=2)),
    (None, vq.PQ(k=16, dim=4, axis="out")),
    (None, vq.PQ(k=8, dim=4, axis="out")),
    (None, vq.PQ(k=16, dim=8, axis="out")),
    (None, vq.Signs(levels=4, block=4)),
    (None, vq.Signs(levels=2, block=7)),
)


CONVOLUTION: tuple[vq.SVD | vq.Basis, ...] = (
    vq.Basis(5),
    vq.SVD(rate=2.2, split="spatial"),
    vq.SVD(rate=2.2),
    vq.Basis(3),
    vq.Basis(4),
    vq.Basis(6),
    vq.SVD(rate=1.5),
    vq.SVD(rate=1.5, split="spatial"),
)


def dense_table(bench: Bench, layers: Sequence[str], rows: Sequence[Any]) -> Table:
    table = Table(
        f"Dense layers {', '.join(layers)}; accuracy {_listed(bench.accuracies)} %",
        {
            "factors": "", "scheme": "", "rate": ".2f", "loss": ".2f", "worst": ".2f",
            "loss, calibrated": ".2f", "worst, calibrated": ".2f",
        },
    )  # fmt: skip
    for factor, scheme in rows:
        factors = None if factor is None else dict.fromkeys(layers, factor)
        make = partial(made, factors=factors, scheme=scheme)
        plain, models = bench.losses(make, calibrated=False)
        calibrated, _ = bench.losses(make, calibrated=True)
        head = 4 * [m for m in models[0].modules() if isinstance(m, nn.Linear)][-1].weight.numel()
        before, after = (weights_of(model) - head for model in (bench.models[0], models[0]))
        table.rows.append({
            "factors": str(factor or ""), "scheme": str(scheme or ""), "rate": before / after,
            "loss": statistics.mean(plain), "worst": max(plain),
            "loss, calibrated": statistics.mean(calibrated),
            "worst, calibrated": max(calibrated),
        })  # fmt: skip
    return table


def convolutions_table(bench: Bench, layer: str, factors: Sequence[vq.SVD | vq.Basis]) -> Table:
    before = bench.models[0].get_submodule(layer)
    table = Table(
        f"Convolution {layer}, as float factors",
        {
            "factor": "", "rate": ".2f", "multiplications": ".3f", "loss": ".2f",
            "loss, calibrated": ".2f",
        },
    )  # fmt: skip
    image = bench.test.images[:1]
    for factor in factors:
        make = partial(made, factors={layer: factor}, scheme=None)
        plain, models = bench.losses(make, calibrated=False)
        calibrated, _ = bench.losses(make, calibrated=True)
        small = models[0].get_submodule(layer)
        weights = sum(p.numel() for n, p in small.named_parameters() if n.endswith("weight"))
        counts = [multiplications(model, image) for model in (models[0], bench.models[0])]
        assert isinstance(before.weight, Tensor)
        table.rows.append({
            "factor": str(factor), "rate": before.weight.numel() / weights,
            "multiplications": counts[0] / counts[1], "loss": statistics.mean(plain),
            "loss, calibrated": statistics.mean(calibrated),
        })  # fmt: skip
    return table


def merged_table(bench: Bench, keeps: Sequence[Any], turns: int) -> Table:
    table = Table(
        "Merged neurons and channels, float, of all layers but the last; one image, one thread",
        {
            "keep": "", "weights": ".3f", "multiplications": ".3f", "process time": ".2f",
            "loss": ".2f", "loss, calibrated": ".2f", "worst, calibrated": ".2f",
            "loss as km(k=16)": ".2f",
        },
    )  # fmt: skip
    image = bench.test.images[:1]
    whole = multiplications(bench.models[0], image)
    for keep in keeps:

        def make(model: nn.Module, data: Any, keep: Any = keep) -> nn.Module:
            return vq.merge_neurons(model, keep, data)

        def coded(model: nn.Module, data: Any, keep: Any = keep) -> nn.Module:
            return vq.compress(vq.merge_neurons(model, keep, data), vq.KM(k=16), data)

        plain, _ = bench.losses(make, calibrated=False)
        calibrated, models = bench.losses(make, calibrated=True)
        both, _ = bench.losses(coded, calibrated=True)
        seconds = process_seconds([bench.models[0], models[0]], image, turns)
        table.rows.append({
            "keep": ", ".join(f"{name} {value}" for name, value in keep.items()),
            "weights": weights_of(models[0]) / weights_of(bench.models[0]),
            "multiplications": multiplications(models[0], image) / whole,
            "process time": seconds[1] / seconds[0],
            "loss": statistics.mean(plain), "loss, calibrated": statistics.mean(calibrated),
            "worst, calibrated": max(calibrated), "loss as km(k=16)": statistics.mean(both),
        })  # fmt: skip
    return table


def _listed(values: Sequence[float]) -> str:
    return ", ".join(f"{value:.2f}" for value in values)


def _least(table: Table, kind: Callable[[dict[str, Any]], bool], rate: float) -> float:
    """The least loss, calibrated or not, of rows of a kind at this rate and above."""
    fitting = [row for row in table.rows if kind(row) and row["rate"] >= 0.95 * rate]
    return min(min(row["loss"], row["loss, calibrated"]) for row in fitting)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])


def dense_part(report: Report, bench: Bench) -> None:
    quick = report.settings["quick"]
    layers, rows = (["0"], [DENSE[0], DENSE[5], DENSE[-4]]) if quick else (["0", "3"], DENSE)
    table = dense_table(bench.heads(), layers, rows)
    report.add(table)
    for rate in () if quick else (8, 16):
        svd = _least(table, lambda row: bool(row["factors"]) and not row["scheme"], rate)
        coded = _least(table, lambda row: not row["factors"], rate)
        name = f"points that SVD in float32 loses more than codebooks, {rate}x"
        report.checks.append(Check(name, svd - coded, 0, True))


def convolution_part(report: Report, bench: Bench) -> None:
    factors = CONVOLUTION[:2] if report.settings["quick"] else CONVOLUTION
    report.add(convolutions_table(bench, "features.3", factors))


def merged_part(report: Report, bench: Bench) -> None:
    dense = {"classifier.0": 0.25, "classifier.3": 0.25}
    channels = {"features.0": 0.75, "features.3": 0.5}
    keeps: list[Any] = [{"features.3": 0.75, **dense}, {**channels, **dense}, dense]
    if report.settings["quick"]:
        keeps = [{"classifier.0": 0.5}]
    table = merged_table(bench, keeps, turns=2 if report.settings["quick"] else 40)
    report.add(table)
    if not report.settings["quick"]:
        within = [row["multiplications"] for row in table.rows if row["loss, calibrated"] <= 1]
        name = "part of the multiplications that is left within 1 point"
        report.checks.append(Check(name, min(within, default=1.0), 0.5))


PARTS: dict[str, tuple[str, Callable[[Report, Bench], None]]] = {
    "dense": ("factorize_dense", dense_part),
    "merged": ("merged_neurons", merged_part),
    "convolution": ("factorize_convolution", convolution_part),
}


if __name__ == "__main__":
    options = parse_arguments(__doc__ or "", _options)
    torch.set_num_threads(1)
    if options.quick:
        bench = Bench([digits.model()], digits.load().test, digits.calibration())
    else:
        networks = [fashion_mnist_cnn.model(seed) for seed in options.seeds]
        bench = Bench(networks, fashion_mnist.load().test, fashion_mnist.calibration())
    seeds = [0] if options.quick else options.seeds
    for part in options.parts:
        name, run = PARTS[part]
        report = Report(name, {"quick": options.quick, "seeds": seeds})
        run(report, bench)
        report.finish(options.output and options.output.with_name(f"{name}.json"))
