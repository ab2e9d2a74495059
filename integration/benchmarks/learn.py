"""Whole files of `vq.learn`, beside as many passes of pruning: Fashion-MNIST, MNIST, digits.

    python -m integration.benchmarks.learn [--networks lenet5 ...] [--teacher fashion_mnist_cnn]
        [--epochs 30] [--target-bytes 5700] [--no-control] [--quick]

The training images are used without labels: the float model teaches, or another that knows more.
Bytes to aim at are set beforehand; losses are absolute, in points of accuracy. The control is
`vq.prune`, to as many zeros as `vq.learn` has found, k-means and an epoch of `vq.finetune`, for as
many passes together and of the same teacher.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import Report, Table, parse_arguments
from integration.workloads import (
    fashion_mnist,
    fashion_mnist_resnet20,
    mnist,
    mnist_lenet5,
    mnist_lenet_300_100,
)
from vq_plugin.nn import coded_weights
from vq_plugin.workloads import digits
from vq_plugin.workloads.data import Batches, Samples


@dataclass(frozen=True)
class Setting:
    """How one network is trained; a training step of the float model has the same batches.

    A ``teacher`` of another name is asked once for each image, before the training.
    """

    target_bytes: int
    epochs: int = 8
    batch: int = 64
    lr: float = 2e-3
    augment: Callable[[Tensor], Tensor] | None = None
    norms: bool = False
    teacher: str | None = None


# Biases are a tenth of such files.
_REST: Final = "int8"
SETTINGS = {
    "lenet_300_100": Setting(6_600, epochs=30),
    "lenet5": Setting(8_000, epochs=5),
    "fashion_mnist_cnn": Setting(30_000, epochs=4, batch=128),
    "resnet20": Setting(
        22_800, batch=128, augment=fashion_mnist_resnet20.shift_and_flip, norms=True
    ),
    # Seven thousand images: more passes, each of other places.
    "mnist_lenet5": Setting(2_460, epochs=30, augment=mnist.shift),
    "mnist_lenet_300_100": Setting(7_100, epochs=10),
    "digits": Setting(8_000),
}
_MNIST = {"mnist_lenet5": mnist_lenet5, "mnist_lenet_300_100": mnist_lenet_300_100}
_WORKLOADS: dict[str, Any] = {**settings.WORKLOADS, **_MNIST}
# Those of all other networks are Fashion-MNIST's.
_DATA: dict[str, Any] = {"digits": digits, **dict.fromkeys(_MNIST, mnist)}


@dataclass(frozen=True)
class Row:
    """One model: who made it, with which seed, its bytes and the processor time it took."""

    by: str
    seed: int
    nbytes: int
    seconds: float
    model: nn.Module


def rows(name: str, setting: Setting, seeds: Sequence[int], control: bool) -> Iterator[Row]:
    """Learned models, and the control for the first seed where it is asked for."""
    workload = _WORKLOADS[name]
    data = _DATA.get(name, fashion_mnist).load().train
    loader = Batches(data, setting.batch, augment=setting.augment)
    taught: dict[str, Any] = {"teacher": workload.model()}
    if setting.teacher is not None:
        loader = Batches(_answers(setting.teacher, data.images), setting.batch, labels=True)
        taught = {"loss": functional.cross_entropy}
    for seed in seeds:
        model = workload.model().train(setting.norms)
        start = time.process_time()
        small = vq.learn(
            model, loader, target_bytes=setting.target_bytes, epochs=setting.epochs, lr=setting.lr,
            seed=seed, rest=_REST, **taught,
        )  # fmt: skip
        yield _saved("vq.learn", seed, small, time.process_time() - start, workload.model())
        if seed != seeds[0] or not control:
            continue
        start = time.process_time()
        sparse = vq.prune(
            model, loader, _zeros(small), epochs=setting.epochs - 1, lr=setting.lr, seed=seed,
            **taught,
        )  # fmt: skip
        small = vq.compress(sparse, vq.KM(k=5, keep_zeros=True), workload.calibration())
        vq.finetune(small, loader, seed=seed, **taught)
        yield _saved("pruning alone", seed, small, time.process_time() - start, workload.model())


@torch.no_grad()
def _answers(teacher: str, images: Tensor) -> Samples:
    """What a network says of images, as probabilities ``(N, classes)`` in the place of labels."""
    model = _WORKLOADS[teacher].model().eval()
    return Samples(images, torch.cat([model(some).softmax(1) for some in images.split(500)]))


def learned_file(folder: Path, name: str, seed: int) -> Path:
    """Where a learned model is kept."""
    return folder / f"{name}_{seed}.vq"


def _saved(by: str, seed: int, small: nn.Module, seconds: float, model: nn.Module) -> Row:
    with tempfile.TemporaryDirectory() as folder:
        nbytes = vq.save(small, Path(folder) / "model.vq", rest=_REST)
        return Row(by, seed, nbytes, seconds, vq.load(Path(folder) / "model.vq", model))


def _zeros(small: nn.Module) -> float:
    weights = [each.codebook_weight.decode().flatten() for each in coded_weights(small).values()]
    return float((torch.cat(weights) == 0).double().mean())


def measure(
    report: Report, name: str, setting: Setting, seeds: Sequence[int], control: bool,
    keep: Path | None,
) -> None:  # fmt: skip
    """Adds the table of a network to a report."""
    workload = _WORKLOADS[name]
    model = workload.model()
    tuning, test = workload.evaluate(model), workload.test(model)
    nbytes = sum(value.nbytes for value in model.state_dict().values())
    table = Table(
        f"{name}: {setting.epochs} passes in batches of {setting.batch}, taught by "
        f"{setting.teacher or 'itself'}; float {nbytes} bytes, "
        f"{100 * tuning:.2f} % tuning, {100 * test:.2f} % test",
        {
            "by": "", "seed": "d", "bytes": "d", "rate": ".1f", "zeros": ".2%",
            "loss (tuning)": ".2f", "loss (test)": ".2f", "CPU s": ".0f",
        },
    )  # fmt: skip
    for row in rows(name, setting, seeds, control):
        table.rows.append({
            "by": row.by, "seed": row.seed, "bytes": row.nbytes, "rate": nbytes / row.nbytes,
            "zeros": _zeros(row.model),
            "loss (tuning)": 100 * (tuning - workload.evaluate(row.model)),
            "loss (test)": 100 * (test - workload.test(row.model)), "CPU s": row.seconds,
        })  # fmt: skip
        # The next takes minutes.
        print(table.rows[-1], flush=True)
        if keep is not None and row.by == "vq.learn":
            keep.mkdir(parents=True, exist_ok=True)
            vq.save(row.model, learned_file(keep, name, row.seed), rest=_REST)
    report.add(table)


def main() -> None:
    def more(parser: argparse.ArgumentParser) -> None:
        parser.add_argument("--networks", nargs="+", choices=list(SETTINGS), default=None)
        parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
        parser.add_argument("--teacher", choices=list(SETTINGS), help="the network itself if none")
        parser.add_argument("--epochs", type=int, help="instead of those of the setting")
        parser.add_argument("--target-bytes", type=int, help="instead of those of the setting")
        parser.add_argument("--keep", type=Path, help="folder for the files of learned models")
        parser.add_argument(
            "--control", action=argparse.BooleanOptionalAction, default=True,
            help="as many passes of pruning, for the first seed",
        )  # fmt: skip

    arguments = parse_arguments(__doc__.splitlines()[0], more)
    names = arguments.networks or (["digits"] if arguments.quick else list(SETTINGS)[:3])
    seeds = [0] if arguments.quick else arguments.seeds
    report = Report("learn", {"quick": arguments.quick, "seeds": seeds})
    asked = {key: getattr(arguments, key) for key in ("teacher", "epochs", "target_bytes")}
    given = {key: value for key, value in asked.items() if value is not None}
    torch.set_num_threads(1)
    for name in names:
        setting = replace(SETTINGS[name], **given)
        measure(report, name, setting, seeds, arguments.control, arguments.keep)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
