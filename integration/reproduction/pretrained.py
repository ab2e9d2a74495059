"""Error against rate on a network that others trained: EfficientNet-Lite0 of ImageNet.

Its classifier and its last convolution by every method of Gong et al. 2014, and layers together:
those that are dense, as a 1x1 convolution is at every place, and all. Nothing is trained after.
There are no labels: what counts is how often views of photographs get the float network's class.
"""

from __future__ import annotations

import warnings
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import Table
from integration.reproduction import text
from integration.reproduction.journal import Journal
from integration.reproduction.measured import formed, nbytes
from integration.reproduction.settings import Setting
from integration.workloads.zoo import efficientnet_lite0
from integration.workloads.zoo.network import run

_FORMATS = {
    "layers": "", "setting": "", "fit": "", "rate": ".1f", "agree@1": ".1f", "agree@5": ".1f",
}  # fmt: skip
_PRODUCTS = ((4, 2), (8, 2), (16, 2), (8, 4), (16, 4))
_SINGLE: tuple[Setting, ...] = (
    *(vq.SVD(rate=rate) for rate in (2, 4, 8)),
    vq.Binary(),
    *(vq.KM(k=k) for k in (2, 4, 8, 16, 32)),
    *(vq.PQ(k=k, dim=dim, axis=axis) for axis in ("in", "out") for k, dim in _PRODUCTS),
    *(vq.RQ(k=256, stages=stages) for stages in (2, 3)),
)
_POINTWISE: tuple[Setting, ...] = (
    vq.SVD(rate=2),
    vq.Binary(),
    *(vq.KM(k=k) for k in (4, 8, 16)),
    *(vq.PQ(k=16, dim=2, axis=axis) for axis in ("in", "out")),
)
_ALL: tuple[Setting, ...] = tuple(vq.KM(k=k) for k in (16, 32, 64, 256))


class Pretrained:
    """The network, and what is asked of it.

    Attributes:
        model: All of it.
        tail: Its last convolution and what comes after.
        inputs: Of the tail, on the untouched views.
        expected: The float network's class of each view, ``(views, 1)``.
    """

    def __init__(self) -> None:
        self.network = efficientnet_lite0.load()
        model: Any = self.network.model
        self.model: nn.Module = model
        self.tail = nn.Sequential(
            model._conv_head, model._bn1, model._swish, model._avg_pooling, nn.Flatten(), model._fc
        ).eval()
        known: list[Tensor] = []
        handle = model._conv_head.register_forward_pre_hook(lambda _, given: known.append(*given))
        scores = torch.cat(run(model, self.network.untouched))
        handle.remove()
        self.inputs, self.expected = known, scores.argmax(1, keepdim=True)
        torch.testing.assert_close(torch.cat(run(self.tail, known)), scores)

    def row(self, layers: str, setting: Setting, *, calibrated: bool = False) -> dict[str, float]:
        """Rate of the layers, and how often the class is the first, or one of five, in percent."""
        whole = layers not in _TAIL
        model, given = (self.model, self.network.untouched) if whole else (self.tail, self.inputs)
        weights = {
            name: layer.weight.numel()
            for name, layer in model.named_modules()
            if isinstance(layer, nn.Linear | nn.Conv2d) and _is_one(layers, name, layer)
        }
        # Data is there for all layers alone.
        data = self.network.calibration[:2] if calibrated else None
        with warnings.catch_warnings():
            # Of codes far off without calibration.
            warnings.simplefilter("ignore")
            small = formed(model, dict.fromkeys(weights, setting), data)
        found = torch.cat(run(small, given)).topk(5, 1).indices == self.expected
        return {
            "rate": 4 * sum(weights.values()) / nbytes(small, [*weights]),
            "agree@1": 100 * float(found[:, 0].float().mean()),
            "agree@5": 100 * float(found.any(1).float().mean()),
        }


_TAIL = {"classifier": nn.Linear, "last convolution": nn.Conv2d}


def _is_one(layers: str, name: str, layer: nn.Linear | nn.Conv2d) -> bool:
    """Whether a layer is of those that are compressed."""
    if layers in _TAIL:
        return isinstance(layer, _TAIL[layers])
    return layers == "all" or isinstance(layer, nn.Linear) or layer.kernel_size == (1, 1)


#: What is compressed, how, and whether by data.
JOBS: tuple[tuple[str, Setting, bool], ...] = (
    *((layers, setting, False) for layers in _TAIL for setting in _SINGLE),
    *(("1x1 and classifier", setting, False) for setting in _POINTWISE),
    *(("all", setting, False) for setting in _ALL),
    ("1x1 and classifier", vq.KM(k=8), True),
    ("all", vq.KM(k=16), True),
)


def published(folder: Path) -> str:
    """The table, of what a journal in the folder has not got yet measured."""
    journal, pretrained = Journal(folder / "pretrained.jsonl"), Pretrained()
    rows = []
    for layers, setting, calibrated in JOBS:
        fit = "calibrated" if calibrated else "plain"
        named = {"layers": layers, "setting": str(setting), "fit": fit}
        measure = partial(pretrained.row, layers, setting, calibrated=calibrated)
        rows.append(journal.measured(named, measure))
    views = f"{len(pretrained.expected)} views of 11 photographs"
    return text.published(journal, Table(f"EfficientNet-Lite0, {views}", _FORMATS, rows))
