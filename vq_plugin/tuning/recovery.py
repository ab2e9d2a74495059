"""Training of settings that lose too much without it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn

from vq_plugin.arguments import check_positive
from vq_plugin.checkpoint import load, save
from vq_plugin.replace import assemble
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, slots_by_name
from vq_plugin.training import Loss, finetune, learn
from vq_plugin.training.latent import WIDEST
from vq_plugin.training.vectors import chosen_vectors
from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.identity import Tried
from vq_plugin.tuning.propose import Landscape


@dataclass(frozen=True)
class Recovery:
    """How settings past the budget are trained, by :func:`vq_plugin.finetune`.

    Attributes:
        loader: Batches: inputs alone, or pairs of inputs and targets. Read anew in every epoch of
            every trial. Not of the data that ``evaluate`` uses.
        epochs: Passes over ``loader`` for each of the trials.
        lr: Learning rate at the start.
        loss: Of the model's output and the float model's; for logits the default will do.
        max_trials: The most settings to train.

    Example:
        >>> import torch, vq_plugin as vq
        >>> recovery = vq.Recovery([torch.randn(64, 8) for _ in range(20)], epochs=2)
        >>> recovery.max_trials
        4
    """

    loader: Iterable[object]
    epochs: int = 1
    lr: float = 0.03
    loss: Loss | None = None
    max_trials: int = 4

    def __post_init__(self) -> None:
        for name in ("epochs", "lr", "max_trials"):
            check_positive(f"recovery: {name}", getattr(self, name))
        if not isinstance(self.loader, Iterable) or isinstance(self.loader, Iterator):
            raise TypeError(
                "recovery reads its loader several times: give a list of batches or a DataLoader, "
                f"not a {type(self.loader).__name__}"
            )


@dataclass(frozen=True)
class Learning(Recovery):
    """How models are trained by :func:`vq_plugin.learn`, at prices of a bit that the budget finds.

    All layers of the search that may be coded become ``KM(keep_zeros=True)``, with as many centers
    as their training leaves, or ``PQ`` where ``schemes`` say so. The first price is a guess; of the
    others each is one at which the losses so far promise to use the budget up.

    Attributes:
        loader: As for :class:`Recovery`.
        epochs: Passes over ``loader`` for each of the trials.
        lr: Learning rate at the start.
        loss: As for :class:`Recovery`.
        max_trials: The most models to train.
        schemes: Which layers learn vectors, as for :func:`vq_plugin.learn`.

    Example:
        >>> import torch, vq_plugin as vq
        >>> learning = vq.Learning([torch.randn(64, 8) for _ in range(20)], epochs=6)
        >>> learning.max_trials
        3
    """

    epochs: int = 8
    lr: float = 2e-3
    max_trials: int = 3
    schemes: Schemes | None = None

    def become(self, start: nn.Module, layers: Iterable[str]) -> dict[str, Scheme]:
        """What layers of a model learn at most, by name; errors as of :func:`vq_plugin.learn`."""
        slots = slots_by_name(start, layers)
        vectors = chosen_vectors(start, slots.values(), self.schemes)
        return {name: vectors.get(name, WIDEST) for name in slots}


@dataclass(frozen=True)
class Trainer:
    """Trains models, each once, by the float model as the teacher.

    In the folder trained models wait for the end of the search, so that a run that was killed need
    not train them again; ``None`` keeps them in memory. ``layers`` are those that may be coded.
    """

    recovery: Recovery
    teacher: nn.Module
    teacher_digest: str
    layers: tuple[str, ...]
    seed: int
    folder: Path | None
    _trained: dict[str, nn.Module] = field(default_factory=dict)

    @property
    def settings(self) -> tuple[object, ...]:
        """What tells the training of one model from another; the loader has no name."""
        recovery = self.recovery
        loss = getattr(recovery.loss, "__qualname__", type(recovery.loss).__qualname__)
        parts = (self.teacher_digest, self.seed, recovery.epochs, recovery.lr, loss)
        if not isinstance(recovery, Learning):
            return parts
        vectors = () if recovery.schemes is None else (f"{recovery.schemes}",)
        return *parts, *self.layers, *vectors

    def __call__(self, key: str, small: nn.Module, model: nn.Module, tried: Tried) -> nn.Module:
        """The trained model of that key; ``small``, made of ``model``, may be trained in place."""
        if self.folder is None:
            if key not in self._trained:
                self._trained[key] = self._train(small, tried, None)
            return assemble(self._trained[key], {})
        path = self.folder / f"{key}.vq"
        if not path.exists():
            self.folder.mkdir(exist_ok=True)
            save(self._train(small, tried, self.folder / f"{key}.training"), path)
        return load(path, model)

    def has(self, key: str) -> bool:
        """Whether there is a trained model of that key: its training did not fail."""
        return key in self._trained or (
            self.folder is not None and (self.folder / f"{key}.vq").exists()
        )

    def _train(self, small: nn.Module, tried: Tried, checkpoint: Path | None) -> nn.Module:
        recovery = self.recovery
        settings: dict[str, Any] = {
            "teacher": self.teacher,
            "loss": recovery.loss,
            "epochs": recovery.epochs,
            "lr": recovery.lr,
            "seed": self.seed,
            "checkpoint": checkpoint,
        }
        if tried.rate_weight is None:
            return finetune(small, recovery.loader, **settings)
        settings |= {"rate_weight": tried.rate_weight, "layers": self.layers}
        if isinstance(recovery, Learning):
            settings["schemes"] = recovery.schemes
        return learn(small, recovery.loader, **settings)


def next_to_train(
    landscape: Landscape, nbytes: float, outcomes: Mapping[Setting, bool]
) -> Setting | None:
    """The next setting to train: bisection along the frontier, on the logarithm of the harm.

    Training takes away a factor of the loss, not an amount, and nobody knows the factor. Settings
    are smaller than ``nbytes``, which one that holds untrained takes. ``None`` when nothing is left
    between one that holds and one that does not.
    """
    low, high = -math.inf, math.inf
    for setting, held in outcomes.items():
        harm = landscape.harm(setting)
        if low < harm < high:
            low, high = (harm, high) if held else (low, harm)
    beyond = [setting for setting in landscape.frontier if landscape.nbytes(setting) < nbytes]
    harms = {setting: landscape.harm(setting) for setting in beyond}
    points = [s for s in beyond if low < harms[s] < high and s not in outcomes]
    if not points:
        return None
    ends = max(low, min(harms.values())), min(high, max(harms.values()))
    target = sum(math.log(max(end, 1e-12)) for end in ends) / 2
    return min(points, key=lambda s: abs(math.log(max(harms[s], 1e-12)) - target))
