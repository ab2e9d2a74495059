"""What to evaluate next, from what is known so far."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.result import LayerCandidate

Phase = Literal["frontier", "local"]

# How far one layer's share of the loss may be from what its harm predicts, as a factor.
_DOUBT = 0.5
# How far the loss of a setting scatters about any sum over layers, as a part of the loss, or of the
# budget where that is more.
_SCATTER = 0.1
# Steps less likely than this to hold are not worth an evaluation, whatever they save.
_HOPELESS = 0.1


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to.

    Attributes:
        level: The loss, or its upper bound if the budget asks for confidence; NaN if it failed.
        held: Whether it is within the budget.
    """

    level: float
    held: bool


class Proposal(NamedTuple):
    """A setting to evaluate, and why."""

    setting: Setting
    phase: Phase


@dataclass(frozen=True)
class Landscape:
    """Everything that is known before the first evaluation.

    Attributes:
        layers: Candidates of every layer, from the largest to the smallest.
        frontier: Settings from the least harmful to the smallest.
        limit: The budget's limit.
    """

    layers: Sequence[Sequence[LayerCandidate]]
    frontier: Sequence[Setting]
    limit: float

    def nbytes(self, setting: Setting) -> int:
        """Bytes of the weights of a setting."""
        return sum(layer[i].nbytes for layer, i in zip(self.layers, setting, strict=True))

    def harm(self, setting: Setting) -> float:
        """Predicted harm, a sum over layers."""
        return sum(layer[i].harm for layer, i in zip(self.layers, setting, strict=True))


def propose(landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> Proposal | None:
    """The next setting to evaluate; a pure function, so that a resumed run takes the same path.

    First bisection along the frontier finds a setting that holds next to one that does not. Then
    every proposal is the change of one or two layers of the best setting so far that promises
    most: bytes saved times the probability to hold.

    Args:
        landscape: The candidates.
        outcomes: What is known, in the order in which it was asked for.

    Returns:
        The proposal, or ``None`` when nothing smaller is left to try.
    """
    low, high = -1, len(landscape.frontier)
    while high - low > 1:
        middle = (low + high) // 2
        setting = landscape.frontier[middle]
        if setting not in outcomes:
            return Proposal(setting, "frontier")
        if outcomes[setting].held:
            low = middle
        else:
            high = middle
    held = [setting for setting, outcome in outcomes.items() if outcome.held]
    if not held:
        return None
    best = min(held, key=lambda setting: (landscape.nbytes(setting), setting))
    return _local(landscape, outcomes, best)


def _local(
    landscape: Landscape, outcomes: Mapping[Setting, Outcome], best: Setting
) -> Proposal | None:
    size = landscape.nbytes(best)
    belief = _Belief(landscape, outcomes)
    moves = [
        move
        for move in _neighbours(landscape, best)
        if move not in outcomes and landscape.nbytes(move) < size
    ]
    if not moves:
        return None
    saved = np.array([size - landscape.nbytes(move) for move in moves])
    chance = belief.holds(moves)
    gain = np.where(chance >= _HOPELESS, saved, 1e-6) * chance
    return Proposal(moves[int(np.argmax(gain))], "local")


def _neighbours(landscape: Landscape, setting: Setting) -> Iterator[Setting]:
    """Settings with one layer smaller, alone or with one other a step larger in exchange."""
    for i, layer in enumerate(landscape.layers):
        for smaller in range(setting[i] + 1, len(layer)):
            step = _changed(setting, i, smaller)
            yield step
            for j, choice in enumerate(setting):
                if j != i and choice > 0:
                    yield _changed(step, j, choice - 1)


def _changed(setting: Setting, layer: int, choice: int) -> Setting:
    return (*setting[:layer], choice, *setting[layer + 1 :])


class _Belief:
    """Bayesian linear regression of the level on the harms of the layers."""

    def __init__(self, landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> None:
        self.landscape = landscape
        known = {s: o.level for s, o in outcomes.items() if math.isfinite(o.level)}
        harms, levels = self._harms(list(known)), np.array(list(known.values()))
        noise = (_SCATTER * np.maximum(np.abs(levels), landscape.limit)) ** 2
        totals = harms.sum(1)
        scale = float(totals @ (levels / noise)) / max(float(totals @ (totals / noise)), 1e-300)
        scale = max(scale, 1e-300)
        # An offset first: an upper bound is above 0 even where nothing changes.
        features = np.hstack([np.ones((len(known), 1)), harms])
        mean = np.array([0.0, *[scale] * harms.shape[1]])
        prior = np.array([landscape.limit / 2, *[_DOUBT * scale] * harms.shape[1]]) ** 2
        gain = (prior[:, None] * features.T) @ np.linalg.inv(
            features @ (prior[:, None] * features.T) + np.diag(noise)
        )
        self.mean = mean + gain @ (levels - features @ mean)
        self.covariance = np.diag(prior) - gain @ features * prior
        self.noise = (_SCATTER * landscape.limit) ** 2

    def holds(self, settings: Sequence[Setting]) -> npt.NDArray[np.float64]:
        """Probability of each setting to hold."""
        features = np.hstack([np.ones((len(settings), 1)), self._harms(settings)])
        mean = features @ self.mean
        variance = np.einsum("ij,jk,ik->i", features, self.covariance, features) + self.noise
        margin = (self.landscape.limit - mean) / np.sqrt(np.maximum(variance, self.noise))
        probability: npt.NDArray[np.float64] = torch.special.ndtr(torch.from_numpy(margin)).numpy()
        return probability

    def _harms(self, settings: Sequence[Setting]) -> npt.NDArray[np.float64]:
        tables = [np.array([c.harm for c in layer]) for layer in self.landscape.layers]
        chosen = np.array(settings, dtype=int).reshape(-1, len(tables))
        return np.stack([table[chosen[:, i]] for i, table in enumerate(tables)], axis=1)
