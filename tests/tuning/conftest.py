"""A small classifier and the answers that it gives, to be kept after compression."""

from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from tests.tuning.networks import dense_net
from vq_plugin.nn import CodebookLayer

# Few and far apart: quick to fit, and their harms differ.
LADDER = (vq.KM(k=2), vq.KM(k=4), vq.PQ(k=8, dim=4), vq.KM(k=16), vq.KM(k=64), None)


@dataclass(frozen=True)
class Task:
    """A float model without any loss, by construction.

    Attributes:
        model: The float model.
        inputs: 500 samples.
        labels: Its answers.
        settings: Calibration and candidates for ``vq.tune``.
    """

    model: nn.Module
    inputs: Tensor
    labels: Tensor
    settings: MappingProxyType[str, Any]

    def correct(self, model: nn.Module) -> Tensor:
        """Right or wrong, sample by sample."""
        with torch.no_grad():
            return model(self.inputs).argmax(1) == self.labels

    def accuracy(self, model: nn.Module) -> float:
        return float(self.correct(model).double().mean())

    @staticmethod
    def is_float(model: nn.Module) -> bool:
        """Whether nothing of it is compressed."""
        return not any(isinstance(module, CodebookLayer) for module in model.modules())

    def error(self, model: nn.Module) -> float:
        """A metric where lower is better, with a baseline of 0.2."""
        return 1.2 - self.accuracy(model)


@pytest.fixture
def task() -> Task:
    generator = torch.Generator().manual_seed(0)
    model = dense_net(generator)
    inputs = torch.randn(500, 24, generator=generator)
    with torch.no_grad():
        labels = model(inputs).argmax(1)
    settings = MappingProxyType({"calibration": [inputs[:100]], "candidates": LADDER})
    return Task(model, inputs, labels, settings)
