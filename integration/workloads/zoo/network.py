"""A network that others trained, real inputs for it, and how far another model agrees with it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor, nn

Split = Literal["calibration", "selection", "untouched"]
SPLITS: tuple[Split, ...] = ("calibration", "selection", "untouched")


@dataclass(frozen=True)
class Network:
    """A pretrained network and three splits of inputs, disjoint by source.

    There are no labels: the float network is the truth. Batches are what the model's forward
    takes: a tensor, or a mapping of arguments.

    Attributes:
        model: The float network in eval mode; not to be changed.
        batches: Gives the batches of a split, the same every time.
        agree: Maps the float network's output on a batch and another model's to the agreement of
            every item, float `(items,)`, 1 where they agree fully.
        metric: What the mean of ``agree`` is called.
        patience: Seconds on two cores within which a whole call of the tuner is to end.
    """

    model: nn.Module
    batches: Callable[[Split], list[Any]]
    agree: Callable[[Any, Any], Tensor]
    metric: str
    patience: float = 600

    @cached_property
    def calibration(self) -> list[Any]:
        """Batches of at most 512 unlabelled inputs, for `vq.compress` and the tuner."""
        return self.batches("calibration")

    @cached_property
    def selection(self) -> list[Any]:
        """Batches by which a setting may be chosen."""
        return self.batches("selection")

    @cached_property
    def untouched(self) -> list[Any]:
        """Batches by which nothing was chosen, of sources that the others never show."""
        return self.batches("untouched")

    def evaluate(self, model: nn.Module) -> float:
        """Mean agreement of ``model`` with the float network on the selection, at most 1."""
        return float(self._agreements(model, self.selection, self._selected).mean())

    def test(self, model: nn.Module) -> float:
        """Mean agreement of ``model`` with the float network on the untouched inputs."""
        return float(self.test_samples(model).mean())

    def test_samples(self, model: nn.Module) -> Tensor:
        """Agreement of every untouched item, float `(items,)`."""
        return self._agreements(model, self.untouched, self._expected)

    @cached_property
    def _selected(self) -> list[Any]:
        return run(self.model, self.selection)

    @cached_property
    def _expected(self) -> list[Any]:
        return run(self.model, self.untouched)

    def _agreements(self, model: nn.Module, batches: list[Any], expected: list[Any]) -> Tensor:
        found = run(model, batches)
        return torch.cat([self.agree(*pair) for pair in zip(expected, found, strict=True)])


@torch.no_grad()
def run(model: nn.Module, batches: list[Any]) -> list[Any]:
    """The model's output on every batch, without gradients."""
    return [model(**x) if isinstance(x, Mapping) else model(x) for x in batches]


def same_class(expected: Tensor, found: Tensor) -> Tensor:
    """Whether the largest of the logits `(N, classes)` is the same: `(N,)`."""
    return (expected.argmax(1) == found.argmax(1)).float()


def cosine(expected: Tensor, found: Tensor) -> Tensor:
    """Cosine of embeddings `(N, size)` that are one item each: `(N,)`."""
    return nn.functional.cosine_similarity(expected, found)


def package_file(package: str, path: str) -> Path:
    """A file inside an installed package, which is not imported.

    Raises:
        FileNotFoundError: The package or the file is not there; the message says what to install.
    """
    spec = find_spec(package)
    if spec is not None and spec.origin is not None:
        file = Path(spec.origin).parent / path
        if file.exists():
            return file
    raise FileNotFoundError(
        f"{package}/{path} is missing: 'Test it' in the README says what to install"
    )
