"""A network with compressed dense layers: its accuracy, and its last hidden layer in retrieval."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from integration.reproduction.settings import Setting

# Images that ask; all others are what is asked for.
_QUERIES = 1000
_AT_ONCE = 100


@dataclass(frozen=True)
class Head:
    """The dense layers of a network, and what reaches them; all else stays as it is.

    Attributes:
        layers: ``nn.Sequential``: activations and dense layers, the last of which gives scores.
        features: Its inputs on the test split, ``(n, features)``.
        labels: Of these, ``(n,)``.
        calibration: Its inputs on unlabelled data.
        compressed: Names of the layers that settings are for.
    """

    layers: nn.Sequential
    features: Tensor
    labels: Tensor
    calibration: Sequence[Tensor]
    compressed: tuple[str, ...]


def compressed(head: Head, setting: Setting, *, calibrated: bool) -> nn.Sequential:
    """The dense layers as a setting has them."""
    data = head.calibration if calibrated else None
    small = formed(head.layers, dict.fromkeys(head.compressed, setting), data)
    assert isinstance(small, nn.Sequential)
    return small


def formed(
    model: nn.Module, settings: Mapping[Any, Setting], data: Sequence[Tensor] | None
) -> nn.Module:
    """A model with patterns in settings of one kind: factors alone, or codes."""
    if any(isinstance(setting, vq.SVD) for setting in settings.values()):
        return vq.factorize(model, settings, data)
    return vq.compress(model, dict(settings), data)


def nbytes(small: nn.Module, names: Sequence[str]) -> int:
    """Bytes of layers that were compressed: codes as in a file, float32 what is not coded."""
    coded = {row.name: row.file_nbytes for row in vq.summary(small).rows}
    total = 0
    for name in names:
        for inner, part in small.get_submodule(name).named_modules(prefix=name):
            if inner in coded:
                total += coded[inner]
            elif isinstance(part, nn.Linear | nn.Conv2d):
                total += 4 * part.weight.numel()
    return total


@torch.no_grad()
def measure(head: Head, small: nn.Sequential) -> dict[str, float]:
    """Points of accuracy, and mean average precision, in percent."""
    hidden = small[:-1](head.features)
    scores = small[-1](hidden)
    top = scores.topk(5, 1).indices == head.labels.unsqueeze(1)
    bits = (hidden > hidden.mean(0)).float() * 2 - 1
    return {
        "accuracy@1": 100 * float(top[:, 0].float().mean()),
        "accuracy@5": 100 * float(top.any(1).float().mean()),
        "mAP": 100 * mean_average_precision(hidden, head.labels),
        "mAP, 1 bit": 100 * mean_average_precision(bits, head.labels),
    }


def mean_average_precision(features: Tensor, labels: Tensor, queries: int = _QUERIES) -> float:
    """Of the first images as queries for all others, ranked by cosine similarity.

    An image is relevant if it is of the query's class. Ties keep the order of the images.

    Args:
        features: ``(n, features)``.
        labels: ``(n,)``.
        queries: How many ask.
    """
    unit = functional.normalize(features.float(), dim=1)
    ranks = torch.arange(1, len(unit), dtype=torch.float64)
    precisions = []
    for some in torch.arange(min(queries, len(unit))).split(_AT_ONCE):
        likeness = unit[some] @ unit.T
        likeness[torch.arange(len(some)), some] = -torch.inf  # each would find itself
        order = likeness.argsort(dim=1, descending=True, stable=True)[:, :-1]
        relevant = (labels[order] == labels[some].unsqueeze(1)).double()
        found = relevant.cumsum(1)
        precisions.append((relevant * found / ranks).sum(1) / found[:, -1].clamp_min(1))
    return float(torch.cat(precisions).mean())
