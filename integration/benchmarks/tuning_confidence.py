"""How often an accepted model breaks the budget in truth, with and without a confidence.

python -m integration.benchmarks.tuning_confidence [--runs 200] [--workload digits] [--quick]

A simulation in which the truth is known: the tuning split, or 5,000 images of it, is the whole
population. Every run draws as many of them, with replacement, and tunes on that; the model it
accepts is then judged on the population, once for a budget without and once for one with a
confidence of 95 %.
All runs share the fits of one seed, and no model is evaluated on the population twice, not even
after an interruption.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

import torch
from safetensors.torch import load_file
from safetensors.torch import save as to_bytes
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.benchmarks.tuning_rivals import Bench, Memo
from vq_plugin.tuning import search
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.layers import layers_of, observed
from vq_plugin.tuning.space import LADDER, search_space

_LEVEL = 0.95
_POPULATION = 5_000


@dataclass(frozen=True)
class Outcome:
    """One simulated tuning run.

    Attributes:
        accepted: Whether it found a model.
        loss: That model's loss on the population, relative.
        rate: Its rate.
    """

    accepted: bool
    loss: float
    rate: float


class Simulation:
    """Tuning runs that differ in their samples alone."""

    def __init__(self, bench: Bench, samples: int, max_trials: int) -> None:
        self.bench = bench
        self.samples = samples
        self.max_trials = max_trials
        self.memo = Memo(*bench.tuning)
        self.kept = 0
        space = search_space(bench.model, bench.ladder)
        layers = layers_of(bench.model, space)
        layers, _ = observed(layers, bench.model, bench.calibration, 0, Deadline())
        self.fits = Fits(layers)

    def run(self, number: int, confidence: float | None) -> Outcome:
        """One tuning run; its number seeds the sample."""
        generator = torch.Generator().manual_seed(number)
        drawn = torch.randint(len(self.bench.hits), (self.samples,), generator=generator)

        def evaluate(model: nn.Module) -> Tensor:
            return self.memo(model)[drawn]

        # Fits do not depend on the samples: hundreds of times the same ones would take hours.
        with (
            mock.patch.object(search, "observed", return_value=(self.fits.layers, None)),
            mock.patch.object(search, "Fits", return_value=self.fits),
        ):
            result = vq.tune(
                self.bench.model,
                evaluate,
                replace(self.bench.budget, confidence=confidence),
                self.bench.calibration,
                candidates=self.bench.ladder,
                max_trials=self.max_trials,
            )
        loss = self.bench.loss(self.memo(result.model))
        return Outcome(result.passed, loss, result.rate)

    def load(self, path: Path) -> None:
        """What an interrupted run evaluated; models are told apart by their values."""
        if path.exists():
            self.memo.known = {
                key: (hits, 0.0)
                for key, hits in load_file(path).items()
                if len(hits) == len(self.bench.hits)
            }
        self.kept = len(self.memo.known)

    def save(self, path: Path) -> None:
        """Keeps what has been evaluated, if there is anything new."""
        if len(self.memo.known) > self.kept:
            self.kept = len(self.memo.known)
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(to_bytes({key: hits for key, (hits, _) in self.memo.known.items()}))


def outcome_row(label: str, outcomes: Sequence[Outcome], limit: float) -> dict[str, object]:
    accepted = [outcome for outcome in outcomes if outcome.accepted]
    broken = sum(outcome.loss > limit + 1e-12 for outcome in accepted)
    found: dict[str, object] = {
        "confidence": label,
        "runs": len(outcomes),
        "accepted": len(accepted),
        "beyond the budget": broken,
        "share %": 100 * broken / len(accepted) if accepted else 0.0,
    }
    if accepted:
        found |= {
            "median rate": statistics.median(o.rate for o in accepted),
            "median loss %": 100 * statistics.median(o.loss for o in accepted),
            "largest loss %": 100 * max(o.loss for o in accepted),
        }
    return found


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    quick = arguments.quick
    name = arguments.workload or ("digits" if quick else "fashion_mnist_cnn")
    runs = arguments.runs or (3 if quick else 200)
    max_trials = 6 if quick else 12
    report = Report(
        f"tuning_confidence_{name}",
        {"quick": quick, "runs": runs, "workload": name},
    )
    bench = Bench(settings.WORKLOADS[name], name, settings.QUICK_LADDER if quick else LADDER)
    # Hundreds of models are evaluated on all of them.
    bench.tuning = tuple(part[:_POPULATION] for part in bench.tuning)
    bench.hits = bench.hits[:_POPULATION]
    bench.budget = vq.LossBudget(relative=0.02)
    samples = len(bench.hits)
    simulation = Simulation(bench, samples, max_trials)
    output = arguments.output or Path("runs/benchmarks") / f"{report.name}.json"
    known = output.with_suffix(".partial.safetensors")
    simulation.load(known)
    table = Table(
        f"{name}: {runs} tuning runs on {samples} of {len(bench.hits)} images each, "
        f"{bench.budget}, at most {max_trials} evaluations a run",
        {
            "confidence": "", "runs": "d", "accepted": "d", "beyond the budget": "d",
            "share %": ".1f", "median rate": ".1f", "median loss %": ".2f",
            "largest loss %": ".2f",
        },
    )  # fmt: skip
    start = time.perf_counter()
    outcomes: dict[float | None, list[Outcome]] = {None: [], _LEVEL: []}
    for number in range(runs):
        for confidence, found in outcomes.items():
            found.append(simulation.run(number, confidence))
        simulation.save(known)
        print(
            f"run {number + 1} of {runs}, {len(simulation.memo.known)} models evaluated, "
            f"{time.perf_counter() - start:.0f} s",
            file=sys.stderr,
        )
    limit = bench.budget.limit
    for confidence, found in outcomes.items():
        label = "none" if confidence is None else f"{confidence:.0%}"
        table.rows.append(outcome_row(label, found, limit))
    report.add(table)
    report.note(f"{len(simulation.memo.known)} different models were evaluated")
    share = table.rows[-1]["share %"]
    label = f"accepted with {_LEVEL:.0%} confidence and beyond the budget, in %"
    report.checks.append(Check(label, share, 100 * (1 - _LEVEL)))
    report.finish(output)
    known.unlink(missing_ok=True)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=settings.WORKLOADS)
    parser.add_argument("--runs", type=int, help="simulated tuning runs (200)")


if __name__ == "__main__":
    main()
