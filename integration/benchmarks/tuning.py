"""The smallest file within a loss budget: ``vq.tune`` beside other ways to choose schemes.

python -m integration.benchmarks.tuning [--workload resnet20] [--seeds 0 1 2] [--quick]

One trained checkpoint, a budget of 1 % of its accuracy, no retraining; the seeds are those of the
fits. All methods choose from the same ladder and the same fits by the tuning split; the test split
gives the last columns and chooses nothing. A second table compares the predicted harm of each
candidate with the loss that it really causes alone.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from typing import Any

import torch
from scipy.stats import spearmanr

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import Check, Report, Table, missing_peer, parse_arguments
from integration.benchmarks.tuning_rivals import (
    Bench,
    Chosen,
    Fits,
    Memo,
    best_uniform,
    file_bytes,
    greedy_fallback,
    inc_autotune,
    mean,
)
from vq_plugin.tuning.space import LADDER
from vq_plugin.workloads.training import correct

Row = dict[str, Any]
_OURS = "vq.tune"


@dataclass(frozen=True)
class Tuned:
    """What ``vq.tune`` came to, and what its search cost beside the evaluations."""

    chosen: Chosen
    result: vq.TuneResult

    @property
    def overhead(self) -> float:
        """Seconds of the search in evaluations of this model."""
        return self.result.search_seconds / statistics.median(
            trial.seconds for trial in self.result.trials
        )


def tune(
    bench: Bench, memo: Memo, seed: int, max_trials: int, confidence: float | None = None
) -> Tuned:
    start = time.perf_counter()
    result = vq.tune(
        bench.model,
        memo,
        replace(bench.budget, confidence=confidence),
        bench.calibration,
        candidates=bench.ladder,
        max_trials=max_trials,
        seed=seed,
    )
    seconds = time.perf_counter() - start
    count = len({str(scheme) for scheme in (result.schemes or {}).values()})
    what = f"{count} schemes" if result.passed else "float"
    return Tuned(Chosen(_OURS, result.model, len(result.trials), 0, seconds, what), result)


def run_seed(bench: Bench, seed: int, arguments: argparse.Namespace) -> Iterator[Row]:
    """All methods; the first to run pays for its evaluations, hence ours is the first."""
    memo = Memo(*bench.tuning)
    tuned = tune(bench, memo, seed, arguments.max_trials)
    ours = row(bench, memo, seed, tuned.chosen)
    yield ours | {"overhead": tuned.overhead, "search seconds": tuned.result.search_seconds}
    fits = Fits(bench, seed)
    uniform = best_uniform(fits, memo)
    yield row(bench, memo, seed, uniform)
    yield row(bench, memo, seed, best_uniform(fits, memo, spare_ends=True))
    real = not missing_peer("neural_compressor")
    yield row(bench, memo, seed, inc_autotune(fits, memo, real=real))
    if seed == arguments.seeds[0]:
        sure = tune(bench, memo, seed, arguments.max_trials, confidence=0.95).chosen
        yield row(bench, memo, seed, replace(sure, method=f"{_OURS}, 95 % confidence"))
        # Dozens of evaluations more; the seed of the fits hardly changes what it finds.
        sizes = fits.by_size()
        smaller = [scheme for scheme, size in sizes.items() if size < file_bytes(uniform.model)]
        yield row(bench, memo, seed, greedy_fallback(fits, memo, smaller[-arguments.starts :]))
        table = prediction_table(bench, fits, tuned.result, arguments.prediction)
        yield {"seed": seed, "prediction": [table.title, table.rows]}


def row(bench: Bench, memo: Memo, seed: int, chosen: Chosen) -> Row:
    size, test_loss = file_bytes(chosen.model), bench.test_loss(chosen.model)
    found = {
        "method": chosen.method,
        "seed": seed,
        "file bytes": size,
        "file rate": bench.float_bytes / size,
        "evaluations": chosen.evaluations,
        "on 300 images": chosen.subset_evaluations or None,
        "loss (tuning) %": 100 * bench.loss(memo(chosen.model)),
        "loss (test) %": 100 * test_loss,
        "test in budget": "yes" if test_loss <= bench.budget.limit + 1e-12 else "no",
        "seconds": chosen.seconds,
        "chosen": chosen.what,
    }
    print(", ".join(f"{key} {value}" for key, value in found.items()), file=sys.stderr)
    return found


def methods_table(bench: Bench, rows: Sequence[Row]) -> Table:
    return Table(
        f"{bench.name}: the smallest file within {bench.budget}, {len(bench.layers)} layers, "
        f"{len(bench.schemes)} schemes; float {bench.float_bytes} bytes, accuracy "
        f"{100 * mean(bench.hits):.2f} % tuning, {100 * bench.test_accuracy:.2f} % test",
        {
            "method": "", "seed": "d", "file bytes": "d", "file rate": ".1f", "evaluations": "d",
            "on 300 images": "d", "loss (tuning) %": ".2f", "loss (test) %": ".2f",
            "test in budget": "", "seconds": ".0f", "chosen": "",
        },
        sorted(rows, key=lambda row: (row["seed"], row["file bytes"])),
    )  # fmt: skip


def prediction_table(
    bench: Bench, fits: Fits, result: vq.TuneResult, extent: settings.Prediction
) -> Table:
    """Rank correlation of what is predicted of single layers with the loss that they cause."""
    images, labels = (part[: extent.images] for part in bench.tuning)
    baseline = mean(bench.hits[: extent.images])
    table = Table(
        f"{bench.name}: prediction against the real loss of one compressed layer "
        f"({len(labels)} images, at most {extent.candidates} candidates a layer, "
        f"seed {fits.seed}; Spearman's rank correlation)",
        _PREDICTION_FORMATS,
    )
    harms: list[float] = []
    errors: list[float] = []
    losses: list[float] = []
    for layer in result.layers:
        candidates = [c for c in layer.candidates if c.scheme is not None]
        candidates = spread(candidates, extent.candidates)
        start = len(losses)
        for candidate in candidates:
            model = fits.build({layer.name: candidate.scheme})
            losses.append(bench.budget.loss(baseline, mean(correct(model, images, labels))))
            harms.append(candidate.harm)
            errors.append(candidate.error)
        print(f"{layer.name}: {len(candidates)} candidates compared", file=sys.stderr)
        table.rows.append(_correlation(layer.name, harms[start:], errors[start:], losses[start:]))
    table.rows.append(_correlation("all", harms, errors, losses))
    return table


_PREDICTION_FORMATS = {
    "layer": "", "candidates": "d", "largest loss %": ".2f", "predicted harm": ".3f",
    "weight error alone": ".3f",
}  # fmt: skip


def spread(items: Sequence[Any], count: int) -> list[Any]:
    """At most ``count`` of the items, evenly spaced, the first and the last among them."""
    if len(items) <= count:
        return list(items)
    return [items[round(i)] for i in torch.linspace(0, len(items) - 1, count).tolist()]


def _correlation(
    layer: str, harms: Sequence[float], errors: Sequence[float], losses: Sequence[float]
) -> Row:
    return {
        "layer": layer,
        "candidates": len(losses),
        "largest loss %": 100 * max(losses, default=0.0),
        "predicted harm": _spearman(harms, losses),
        "weight error alone": _spearman(errors, losses),
    }


def _spearman(predicted: Sequence[float], real: Sequence[float]) -> float | None:
    if len(set(predicted)) < 2 or len(set(real)) < 2:
        return None
    return float(spearmanr(predicted, real).statistic)


def check(report: Report, rows: Sequence[Row], name: str, seeds: Sequence[int]) -> None:
    """What the project promises."""
    by = {(row["method"], row["seed"]): row for row in rows}
    ours = [by[_OURS, seed] for seed in seeds]
    if name != "digits":
        for seed, own in zip(seeds, ours, strict=True):
            ratio = by["best uniform (exhaustive)", seed]["file bytes"] / own["file bytes"]
            label = f"seed {seed}: file of the best uniform scheme over ours"
            report.checks.append(Check(label, ratio, 1.3, at_least=True))
    most = max(own["evaluations"] for own in ours)
    report.checks.append(Check("most evaluations of vq.tune", most, 25))
    if name == "fashion_mnist_cnn":
        overhead = max(own["overhead"] for own in ours)
        label = "largest overhead of the search, in evaluations"
        report.checks.append(Check(label, overhead, 5))


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    quick = arguments.quick
    name = arguments.workload or ("digits" if quick else "fashion_mnist_cnn")
    arguments.seeds = arguments.seeds or ([0] if quick else [0, 1, 2])
    arguments.max_trials = 8 if quick else 25
    arguments.starts = 1 if quick else 3
    arguments.prediction = settings.QUICK_PREDICTION if quick else settings.PREDICTION[name]
    chosen = {"quick": quick, "seeds": arguments.seeds, "workload": name}
    report = Report(f"tuning_{name}", chosen)
    bench = Bench(settings.WORKLOADS[name], name, settings.QUICK_LADDER if quick else LADDER)
    found = Progress(arguments.output or Path("runs/benchmarks") / f"{report.name}.json", chosen)
    if arguments.resume:
        found.resume()
    for seed in arguments.seeds:
        if seed not in found.done:
            found.add(seed, run_seed(bench, seed, arguments))
    if missing_peer("neural_compressor"):
        report.note("neural_compressor is not installed: its rule is followed here")
    else:
        # Its distribution has had several names.
        package = metadata.packages_distributions()["neural_compressor"][0]
        report.note(f"INC autotune is that of {package} {metadata.version(package)}")
    rows = [row for row in found.rows if "prediction" not in row]
    report.add(methods_table(bench, rows))
    for row in found.rows:
        if "prediction" in row:
            title, lines = row["prediction"]
            report.add(Table(title, _PREDICTION_FORMATS, lines))
    overheads = ", ".join(
        f"{row['search seconds']:.0f} s = {row['overhead']:.1f} evaluations"
        for row in rows
        if "overhead" in row
    )
    report.note(f"everything but the evaluations of vq.tune, seed by seed: {overheads}")
    check(report, rows, name, arguments.seeds)
    report.finish(arguments.output)
    found.path.unlink(missing_ok=True)


class Progress:
    """Rows as they come, kept in a file beside the result: a run takes up to hours."""

    def __init__(self, output: Path, chosen: Mapping[str, Any]) -> None:
        self.path = output.with_suffix(".partial.json")
        self.chosen = dict(chosen)
        self.rows: list[Row] = []
        self.done: list[int] = []

    def resume(self) -> None:
        """Takes over the finished seeds of an interrupted run of the same code and settings."""
        if not self.path.exists():
            return
        kept = json.loads(self.path.read_text())
        if kept["settings"] != self.chosen:
            raise SystemExit(f"{self.path} is of a run with other settings: {kept['settings']}")
        self.done = kept["done"]
        self.rows = [row for row in kept["rows"] if row["seed"] in self.done]

    def add(self, seed: int, rows: Iterator[Row]) -> None:
        for row in rows:
            self.rows.append(row)
            self._write()
        self.done.append(seed)
        self._write()

    def _write(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        content = {"settings": self.chosen, "done": self.done, "rows": self.rows}
        self.path.write_text(json.dumps(content, indent=1) + "\n")


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=settings.PREDICTION)
    parser.add_argument("--seeds", type=int, nargs="+", help="seeds of the fits (0 1 2)")
    parser.add_argument(
        "--resume", action="store_true", help="keep the finished seeds of an interrupted run"
    )


if __name__ == "__main__":
    main()
