"""Error against rate on large dense layers: a VGG-like network, layer by layer and together.

As the paper has it, whose networks keep 90 % of their weights there: its two large dense layers by
every method, each alone with the other in float, and both. Nothing is trained after.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

import vq_plugin as vq
from integration.benchmarks.harness import Table
from integration.reproduction import text
from integration.reproduction.journal import Journal, Row
from integration.reproduction.measured import Head, compressed, measure, nbytes
from integration.reproduction.settings import Setting
from integration.workloads import fashion_mnist, fashion_mnist_vgg

_FORMATS = {
    "layers": "", "setting": "", "rate": ".1f", "lost@1": ".2f", "lost@5": ".2f", "mAP lost": ".2f",
}  # fmt: skip
LAYERS = {"both": ("0", "3"), "second": ("3",), "first": ("0",)}
SETTINGS: tuple[Setting, ...] = (
    *(vq.SVD(rate=rate) for rate in (8, 16, 32)),
    vq.Binary(),
    *(vq.KM(k=k) for k in (2, 4)),
    vq.PQ(k=16, dim=4, axis="in"),
    *(vq.PQ(k=k, dim=4, axis="out") for k in (8, 16)),
    vq.RQ(k=256, stages=2),
)


@torch.no_grad()
def head() -> Head:
    """The dense layers of the trained network with what reaches them."""
    model, test = fashion_mnist_vgg.model(), fashion_mnist.load().test
    features = [model.features(some).flatten(1) for some in test.images.split(500)]
    return Head(model.classifier, torch.cat(features), test.labels, (), LAYERS["both"])


def row(head: Head, setting: Setting, before: Row) -> Row:
    """What is lost against the float network, and the rate of the layers that are compressed."""
    small = compressed(head, setting, calibrated=False)
    after = measure(head, small)
    whole = sum(4 * head.layers.get_submodule(name).weight.numel() for name in head.compressed)
    return {
        "rate": whole / nbytes(small, head.compressed),
        "lost@1": before["accuracy@1"] - after["accuracy@1"],
        "lost@5": before["accuracy@5"] - after["accuracy@5"],
        "mAP lost": before["mAP"] - after["mAP"],
    }


def published(folder: Path) -> str:
    """The table, of what a journal in the folder has not got yet measured."""
    journal, whole = Journal(folder / "large.jsonl"), head()
    before = journal.measured({"layers": "none"}, partial(measure, whole, whole.layers))
    rows = []
    for layers, names in LAYERS.items():
        for setting in SETTINGS:
            named = {"layers": layers, "setting": str(setting)}
            some = replace(whole, compressed=names)
            rows.append(journal.measured(named, partial(row, some, setting, before)))
    title = f"Fashion-MNIST VGG, float {before['accuracy@1']:.2f} %, plain fits"
    return text.published(journal, Table(title, _FORMATS, rows))
