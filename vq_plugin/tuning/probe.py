"""What a metric says of copies of the float model that are ruined on purpose."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.ruined import scrambled, shuffled, silenced

#: The metric of a float model, made by the function, which is named; ``None`` if it fails.
Measure: TypeAlias = Callable[[str, Callable[[], nn.Module]], float | None]


@dataclass(frozen=True)
class Probe:
    """Evaluations of ruined models beside that of the float model, ``baseline``.

    Each method is one evaluation, whose metric is ``None`` if the model cannot be evaluated.
    """

    model: nn.Module
    budget: LossBudget
    baseline: float
    measure: Measure

    def loss(self, score: float) -> float:
        """Loss of a metric, in the unit of the budget."""
        return self.budget.loss(self.baseline, score)

    def shuffled(self, seed: int, *, within: bool) -> float | None:
        """Where samples have the outputs of others, of the model or of the layers within."""
        name = f"shuffled{' within' if within else ''} {seed}"
        return self.measure(name, lambda: shuffled(self.model, seed, within=within))

    def silenced(self) -> float | None:
        """Where outputs are zeros."""
        return self.measure("silenced", lambda: silenced(self.model))

    def scrambled(self, seed: int) -> float | None:
        """Where signs of parameters are drawn anew."""
        return self.measure(f"signs {seed}", lambda: scrambled(self.model, seed))
