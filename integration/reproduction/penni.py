"""PENNI before training that pays for bits, or that training alone: at equal bytes and passes.

``vq.learn`` makes most weights zeros by itself, each at the price of its bits. Whether factors, and
coefficients that were made zero before, help it is told by three rows for each size: it alone; it
after the network was made products; and it after two thirds of the passes have made the
coefficients of these sparse.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from integration.benchmarks.harness import Table
from integration.reproduction import text
from integration.reproduction.journal import Journal
from integration.reproduction.methods import Few, Network, ended
from vq_plugin.workloads.data import Batches
from vq_plugin.workloads.training import accuracy

_REST = "float16"
_FORMATS = {
    "method": "", "target": ",d", "seeds": "d", "start lost": ".2f", "start gone": ".1f",
    "start run": ".1f", "start nonzero": ".1f", "bytes": ",.0f", "rate": ".1f", "lost": ".2f",
    "difference": ".4f", "weights": ",.0f", "dense time": ".2f", "codes time": ".2f",
    "onnx gap": ".1e",
}  # fmt: skip

#: A float model, and the model that comes out of it.
Made = tuple[nn.Module, nn.Module]


@dataclass(frozen=True)
class Subject:
    """A trained network, and what is done to it.

    Attributes:
        model: The network.
        factors: What becomes products.
        deviations: The cut of coefficients.
        calibration: Unlabelled data.
        batches: Training data.
        images: What it is measured on, ``(n, channels, height, width)``.
        labels: Of these, ``(n,)``.
        passes: Of all training, for each row.
        sizes: Bytes that files aim at.
        ways: What is compared, of :data:`WAYS`.
    """

    model: nn.Module
    factors: Mapping[Any, vq.Basis | vq.SVD | None]
    deviations: float
    calibration: Sequence[Tensor]
    batches: Batches | Few
    images: Tensor
    labels: Tensor
    passes: int
    sizes: tuple[int, ...]
    ways: tuple[str, ...]


def digits_cnn() -> Subject:
    """The CNN of the digits, measured on what neither training nor calibration has seen."""
    from vq_plugin.workloads import digits

    data = digits.load()
    kernels, dense = vq.Basis(d=5), vq.SVD(rate=2)
    return Subject(
        digits.model(),
        {nn.Conv2d: kernels, nn.Linear: dense, "features.0": None, "classifier.3": None},
        1.0,
        digits.calibration(),
        digits.training_batches(),
        torch.cat([data.tuning.images, data.test.images]),
        torch.cat([data.tuning.labels, data.test.labels]),
        passes=36,
        sizes=(5000, 3500),
        ways=tuple(WAYS),
    )


def resnet20() -> Subject:
    """ResNet-20 on the test split of Fashion-MNIST; half a pass of its images counts as one."""
    from integration.workloads import fashion_mnist, fashion_mnist_resnet20

    data, batches = fashion_mnist.load().test, fashion_mnist.training_batches()
    kernels = {nn.Conv2d: vq.Basis(d=5), "features.0": None, "re:.*shortcut.0": None}
    return Subject(
        fashion_mnist_resnet20.model(),
        kernels,
        1.25,
        fashion_mnist.calibration(),
        Few(batches, len(batches) // 2),
        data.images,
        data.labels,
        passes=5,
        sizes=(22_700,),
        ways=("learn", "PENNI, then learn"),
    )


def learned(start: nn.Module, subject: Subject, passes: int, size: int, seed: int) -> Made:
    """By ``learn``, norms with statistics of their own."""
    small = vq.learn(
        deepcopy(start).train(), subject.batches, target_bytes=size, teacher=subject.model,
        epochs=passes, seed=seed, rest=_REST,
    )  # fmt: skip
    return start, small.eval()


def alone(subject: Subject, size: int, seed: int) -> Made:
    """The network as it is."""
    return learned(subject.model, subject, subject.passes, size, seed)


def of_products(subject: Subject, size: int, seed: int) -> Made:
    """Its layers as products, whose coefficients ``learn`` finds."""
    whole = vq.factorize(subject.model, subject.factors, subject.calibration)
    return learned(whole, subject, subject.passes, size, seed)


def after_penni(subject: Subject, size: int, seed: int) -> Made:
    """Products of which most coefficients are zero, channels without any gone."""
    whole = vq.factorize(subject.model, subject.factors, subject.calibration)
    first = 2 * subject.passes // 3
    sparse = vq.prune_factors(
        whole.train(), subject.batches, teacher=subject.model, deviations=subject.deviations,
        epochs=first, seed=seed,
    )  # fmt: skip
    narrow = vq.remove_empty_channels(sparse.eval())
    return learned(narrow, subject, subject.passes - first, size, seed)


WAYS: dict[str, Callable[[Subject, int, int], Made]] = {
    "learn": alone,
    "PENNI, then learn": after_penni,
    "products, then learn": of_products,
}
SUBJECTS: dict[str, tuple[str, Callable[[], Subject]]] = {
    "penni": ("Digits' CNN", digits_cnn),
    "penni_resnet20": ("ResNet-20", resnet20),
}


@torch.no_grad()
def difference(small: nn.Module, subject: Subject) -> float:
    """The divergence of what it says from what the float network says, in nats for each image."""
    said, meant = (
        torch.cat([each(some) for some in subject.images.split(500)]).log_softmax(1)
        for each in (small, subject.model)
    )
    return float(functional.kl_div(said, meant, log_target=True, reduction="batchmean"))


def row_of(made: Made, subject: Subject) -> dict[str, float]:
    """What the float model is that was coded, what it ends in, and how far that is from before."""
    start, small = made
    example = subject.calibration[:1]

    def test(model: nn.Module) -> float:
        return accuracy(model, subject.images, subject.labels)

    net = Network(subject.model, subject.calibration, subject.batches, test)
    before, now = (vq.count_work(each, example) for each in (subject.model, start))
    return {
        **ended(start, small, net),
        "start gone": 100 * (1 - now.nonzero_weights / before.nonzero_weights),
        "start run": 100 * (1 - now.multiplications / before.multiplications),
        "start nonzero": 100 * (1 - now.nonzero_multiplications / before.multiplications),
        "difference": difference(small, subject),
        "weights": vq.count_work(small, example).nonzero_weights,
    }


def published(folder: Path, part: str, seeds: Sequence[int]) -> str:
    """The table of a network, of what a journal in the folder has not got yet measured."""
    title, build = SUBJECTS[part]
    journal, subject = Journal(folder / f"{part}.jsonl"), build()
    rows = []
    for size in subject.sizes:
        for method in subject.ways:
            way = WAYS[method]
            measured = [
                journal.measured(
                    {"method": method, "target": size, "seed": seed},
                    lambda way=way, size=size, seed=seed: row_of(  # type: ignore[misc]
                        way(subject, size, seed), subject
                    ),
                )
                for seed in seeds
            ]
            means = {n: statistics.mean(row[n] for row in measured) for n in list(_FORMATS)[3:]}
            rows.append({"method": method, "target": size, "seeds": len(seeds), **means})
    name = f"{title}, {subject.passes} passes, seeds {', '.join(map(str, seeds))}"
    return text.published(journal, Table(name, _FORMATS, rows))
