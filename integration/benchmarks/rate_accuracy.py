"""Accuracy lost at each rate, without training and with it, beside coremltools' and torchao's.

    python -m integration.benchmarks.rate_accuracy [--workload lenet5] [--parts files] [--quick]

Two parts, and a report of each: layers' codebooks without any training, and whole files after
pruning, training and coding (:mod:`integration.benchmarks.trained`, minutes to an hour).

Without training: one trained checkpoint, the same layers for all. The loss is absolute, in points
of accuracy: of the tuning split, by which anything "best" is chosen, and of the test split, which
is reported. The rate is that of the compressed layers, counted as
:mod:`integration.benchmarks.peers` says. The error is the squared error of these layers' weights
over the sum of their squares. Beside each comparison of losses stands the standard error of the
difference, for images paired.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from types import ModuleType

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks import peers, settings, trained
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    Timed,
    missing_peer,
    parse_arguments,
    race,
    squared_error,
)
from vq_plugin.workloads.training import correct

PARTS = ("layers", "files")


@dataclass(frozen=True)
class Point:
    """One setting, measured."""

    by: str
    setting: str
    scheme: vq.Scheme | None
    calibrated: bool
    rate: float
    bits: float
    tuning_loss: float
    test_loss: float
    hits: torch.Tensor
    error: float
    seconds: float
    note: str


class Bench:
    """A trained model, its accuracy, and what is measured on it."""

    def __init__(self, workload: ModuleType, name: str, rounds: int) -> None:
        self.workload = workload
        self.model = workload.model()
        self.layers = settings.target_layers(name, self.model)
        self.rounds = rounds
        self.tuning = workload.evaluate(self.model)
        self.images = settings.test_images(name)
        self.hits = correct(self.model, *self.images)
        self.test = float(self.hits.double().mean())
        self.calibration = workload.calibration()
        self._floats = {n: self.model.get_submodule(n).weight.detach() for n in self.layers}

    @property
    def kinds(self) -> set[type[nn.Module]]:
        return {type(self.model.get_submodule(name)) for name in self.layers}

    @property
    def weights(self) -> int:
        return sum(weight.numel() for weight in self._floats.values())

    def own(self, schemes: Iterable[vq.Scheme], *, calibrated: bool) -> list[Point]:
        data = self.calibration if calibrated else None
        points = []
        for scheme in schemes:
            call = partial(peers.ours, self.model, self.layers, scheme, data)
            run = race({"ours": call}, self.rounds)["ours"]
            points.append(self._point("vq_plugin", str(scheme), run, scheme, calibrated))
        return points

    def pair(self, peer: settings.Peer) -> tuple[Point, Point]:
        """A peer, and ours with the same k and dim in the same run."""
        # A tiny layer first: imports and thread pools are not part of the time.
        peer.compress(nn.Sequential(nn.Linear(64, 64)), ["0"], peer.n_bits, peer.dim)
        timed = race(
            {
                "ours": partial(peers.ours, self.model, self.layers, peer.counterpart),
                "peer": partial(peer.compress, self.model, self.layers, peer.n_bits, peer.dim),
            },
            self.rounds,
        )
        scheme = peer.counterpart
        return (
            self._point(peer.name, f"{peer.n_bits} bits, dim {peer.dim}", timed["peer"]),
            self._point("vq_plugin", str(scheme), timed["ours"], scheme),
        )

    @torch.no_grad()
    def _point(
        self,
        by: str,
        setting: str,
        run: Timed[peers.Compressed],
        scheme: vq.Scheme | None = None,
        calibrated: bool = False,
    ) -> Point:
        small = run.result
        hits = correct(small.model, *self.images)
        energy = sum(squared_error(w, torch.zeros_like(w)) for w in self._floats.values())
        lost = sum(squared_error(w, small.weights[n]) for n, w in self._floats.items())
        return Point(
            by=by,
            setting=setting,
            scheme=scheme,
            calibrated=calibrated,
            rate=4 * self.weights / small.nbytes,
            bits=8 * small.nbytes / self.weights,
            tuning_loss=100 * (self.tuning - self.workload.evaluate(small.model)),
            test_loss=100 * (self.test - float(hits.double().mean())),
            hits=hits,
            error=lost / energy,
            seconds=run.median,
            note=f"{len(small.left)} layers left float32" if small.left else "",
        )


def best_at(rate: float, points: Iterable[Point]) -> Point | None:
    """The point of least loss on the tuning split among those of at least this rate.

    Rates that differ by less than a thousandth count as equal: four bytes of codebook.
    """
    fitting = [point for point in points if point.rate >= rate * (1 - 1e-3)]
    return min(fitting, key=lambda point: (point.tuning_loss, -point.rate), default=None)


def standard_error(hits: torch.Tensor, others: torch.Tensor) -> float:
    """Of the difference of two accuracies on the same images, in points.

    Only images that one model gets right and the other wrong say anything about it.
    """
    return 100 * float((hits.double() - others.double()).std()) / math.sqrt(len(hits))


def points_table(bench: Bench, points: Iterable[Point]) -> Table:
    layers = bench.layers if len(bench.layers) <= 4 else [f"{len(bench.layers)} layers"]
    table = Table(
        f"{', '.join(layers)} ({bench.weights} weights); "
        f"accuracy {100 * bench.tuning:.2f} % tuning, {100 * bench.test:.2f} % test",
        {
            "by": "", "setting": "", "calibrated": "", "layer rate": ".2f", "bits/weight": ".3f",
            "loss (tuning)": ".2f", "loss (test)": ".2f", "error": ".4f", "seconds": ".2f",
            "note": "",
        },
    )  # fmt: skip
    for point in points:
        table.rows.append({
            "by": point.by, "setting": point.setting, "calibrated": "yes" * point.calibrated,
            "layer rate": point.rate, "bits/weight": point.bits,
            "loss (tuning)": point.tuning_loss, "loss (test)": point.test_loss,
            "error": point.error, "seconds": point.seconds, "note": point.note,
        })  # fmt: skip
    return table


def same_table(pairs: Iterable[tuple[Point, Point]]) -> Table:
    table = Table(
        "Peers, and ours with the same k and dim (losses of the test split)",
        {
            "peer": "", "setting": "", "ours": "", "rate": ".2f", "ours: rate": ".2f",
            "loss": ".2f", "ours: loss": ".2f", "error / theirs": ".5f", "time / theirs": ".4f",
        },
    )  # fmt: skip
    for peer, same in pairs:
        table.rows.append({
            "peer": peer.by, "setting": peer.setting, "ours": same.setting,
            "rate": peer.rate, "ours: rate": same.rate,
            "loss": peer.test_loss, "ours: loss": same.test_loss,
            "error / theirs": same.error / peer.error,
            "time / theirs": same.seconds / peer.seconds,
        })  # fmt: skip
    return table


def best_table(pairs: Iterable[tuple[Point, Point]], ours: list[Point], *, calibrated: bool
               ) -> Table:  # fmt: skip
    with_ = "with" if calibrated else "without"
    table = Table(
        f"Peers, and the best of ours {with_} calibration at no lower rate "
        "(chosen on the tuning split; losses of the test split)",
        {
            "peer": "", "setting": "", "ours": "", "rate": ".2f", "ours: rate": ".2f",
            "loss": ".2f", "ours: loss": ".2f", "difference ±": ".2f", "time / theirs": ".4f",
        },
    )  # fmt: skip
    candidates = [point for point in ours if point.calibrated == calibrated]
    for peer, _ in pairs:
        row = {"peer": peer.by, "setting": peer.setting, "rate": peer.rate, "loss": peer.test_loss}
        best = best_at(peer.rate, candidates)
        if best is not None:
            row |= {
                "ours": best.setting, "ours: rate": best.rate, "ours: loss": best.test_loss,
                "difference ±": standard_error(peer.hits, best.hits),
                "time / theirs": best.seconds / peer.seconds,
            }  # fmt: skip
        table.rows.append(row)
    return table


def check_rates(report: Report, ours: Iterable[Point]) -> None:
    """The promises of rate and loss, without calibration."""
    plain = [point for point in ours if not point.calibrated]
    for kind, rate in ((vq.KM, 16), (vq.PQ, 28)):
        best = best_at(rate, (p for p in plain if isinstance(p.scheme, kind)))
        if best is not None:
            name = f"loss of {best.setting} at {best.rate:.2f}x (chosen among {rate}x and above)"
            report.checks.append(Check(name, best.test_loss, 1))


def check_coremltools(report: Report, same: Table, best: Table) -> None:
    """The promises against coremltools' palettizer."""
    for row, chosen in zip(same.rows, best.rows, strict=True):
        if row["peer"] != peers.coremltools.__name__:
            continue
        against = f"coremltools' at {row['setting']} ({row['rate']:.1f}x)"
        report.checks.append(Check(f"time over {against}, same k and dim", row["time / theirs"], 1))
        if row["setting"].endswith("dim 1"):
            report.checks.append(Check(f"KM error over {against}", row["error / theirs"], 1))
            continue
        more = chosen.get("ours: loss", math.inf) - row["loss"]
        took = chosen.get("time / theirs", math.inf)
        report.checks.append(Check(f"points lost beyond {against}, best", more, 0))
        report.checks.append(Check(f"time over {against}, best", took, 1))


def layers(name: str, arguments: argparse.Namespace) -> None:
    """The part without training."""
    quick = arguments.quick
    chosen = {"quick": quick, "rounds": arguments.rounds, "workload": name}
    report = Report(f"rate_accuracy_{name}", chosen)
    bench = Bench(settings.WORKLOADS[name], name, arguments.rounds)
    pairs = []
    for peer in settings.QUICK_PEERS if quick else settings.PEERS:
        if missing_peer(peer.module):
            report.note(f"{peer.module} is not installed: {peer.name} is left out")
        elif not peer.takes(bench.kinds):
            report.note(f"{peer.name} takes no convolutions: left out")
        else:
            try:
                pairs.append(bench.pair(peer))
            except AssertionError as error:
                # Sizes that it does not take.
                report.note(
                    f"{peer.name}, {peer.n_bits} bits, dim {peer.dim}, did not run: {error}"
                )
    same = {point.setting: point for _, point in pairs}
    schemes = settings.QUICK_SCHEMES if quick else settings.SCHEMES
    plain = bench.own((s for s in schemes if str(s) not in same), calibrated=False)
    calibrated = settings.QUICK_CALIBRATED if quick else settings.CALIBRATED
    ours = [*plain, *same.values(), *bench.own(calibrated, calibrated=True)]
    ours.sort(key=lambda point: (point.calibrated, point.setting.partition("(")[0], point.rate))
    report.add(points_table(bench, [*ours, *(peer for peer, _ in pairs)]))
    # The project promises bounds on this network; the others are shown as they come out.
    promised = name == "fashion_mnist_cnn"
    if promised:
        check_rates(report, ours)
    if pairs:
        same_sizes, plain_best = same_table(pairs), best_table(pairs, ours, calibrated=False)
        report.add(same_sizes)
        report.add(plain_best)
        report.add(best_table(pairs, ours, calibrated=True))
        if promised:
            check_coremltools(report, same_sizes, plain_best)
    report.finish(arguments.output)


def files(name: str, arguments: argparse.Namespace) -> None:
    """The part with training."""
    seeds = 1 if arguments.quick else arguments.seeds
    chosen = {"quick": arguments.quick, "seeds": seeds, "workload": name}
    report = Report(f"trained_{name}", chosen)
    trained.measure(report, name, seeds)
    output = arguments.output
    report.finish(output and output.with_stem(f"{output.stem}_trained"))


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    name = arguments.workload or ("digits" if arguments.quick else "fashion_mnist_cnn")
    for part in arguments.parts:
        {"layers": layers, "files": files}[part](name, arguments)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=settings.WORKLOADS)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=PARTS)
    parser.add_argument("--rounds", type=int, default=1, help="fits of each setting (1)")
    parser.add_argument("--seeds", type=int, default=3, help="of training (3)")


if __name__ == "__main__":
    main()
