"""What to evaluate next, from what is known so far."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from vq_plugin.sizes import setting_nbytes
from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.result import LayerCandidate

Phase = Literal["frontier", "local", "recovery"]

# How far the loss that a layer, or one of its candidates, adds may be from what its harm predicts,
# as a factor.
_DOUBT = 0.3
# How far the loss of a setting is from any sum over layers, as a part of the budget; settings whose
# predicted losses differ by about as much, layer by layer, are off by the same.
_SCATTER = 0.1
# Steps less likely than this to hold are not worth an evaluation, whatever they save.
_HOPELESS = 0.1
# Where losses are in doubt, settings closer than this in bytes, as a factor, are not told apart.
_SPACING = 1.06
# Losses of so many budgets say only that there is one.
_FAR = 10
# What does less harm than this part of a start is no substitute for it.
_GENTLE = 0.5
# Layers that may grow in exchange for another.
_EXCHANGES = 8


@dataclass(frozen=True)
class Outcome:
    """What an evaluation came to: the loss, or its upper bound, as ``level``; NaN if it failed.

    ``doubt`` is the standard error of the level as a prediction of what the samples that confirm it
    will say; 0 where the level itself decides.
    """

    level: float
    held: bool
    doubt: float = 0.0

    def safe(self, limit: float) -> bool:
        """Whether what confirms it will hardly say otherwise."""
        return self.level + 2 * self.doubt < limit


class Proposal(NamedTuple):
    """A setting to evaluate, and why."""

    setting: Setting
    phase: Phase


@dataclass(frozen=True)
class Landscape:
    """What is known before the first evaluation; all from the largest, or least harmful, on.

    ``start`` is a harm that probably holds, to begin with; ``None`` if nothing says so.
    """

    layers: Sequence[Sequence[LayerCandidate]]
    frontier: Sequence[Setting]
    limit: float
    start: float | None = None

    def nbytes(self, setting: Setting) -> int:
        """Bytes of the weights of a setting."""
        return setting_nbytes(self.layers, setting)

    def harm(self, setting: Setting) -> float:
        """Predicted harm, a sum over layers."""
        return sum(layer[i].harm for layer, i in zip(self.layers, setting, strict=True))


def propose(landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> Proposal | None:
    """The next setting to evaluate; a pure function, so that a resumed run takes the same path.

    First, from the start on, bisection along the frontier finds a setting that holds next to one
    that does not. Where
    levels are in doubt, one setting is made sure to be safe; and where the doubt is large, the true
    edge is somewhere around, and the frontier is filled there, so that wherever it turns out to be,
    a setting is near. Elsewhere every further proposal is the change of one or two layers of the
    best setting so far that promises most: bytes saved times the probability to hold.

    Outcomes are in the order in which they were asked for. ``None`` means that nothing is left to
    try.
    """
    between = _between(landscape, outcomes)
    if between is not None:
        return Proposal(between, "frontier")
    known = [outcome for outcome in outcomes.values() if math.isfinite(outcome.level)]
    if not known:
        return None
    doubt = min(known, key=lambda outcome: abs(outcome.level - landscape.limit)).doubt
    around = _safe(landscape, outcomes) if doubt > 0 else None
    if around is None and doubt > _SCATTER * landscape.limit:
        around = _in_doubt(landscape, outcomes)
    if around is not None:
        return Proposal(around, "frontier")
    held = [setting for setting, outcome in outcomes.items() if outcome.held]
    if not held or doubt > _SCATTER * landscape.limit:
        return None
    best = min(held, key=lambda setting: (landscape.nbytes(setting), setting))
    return _local(landscape, outcomes, best)


def _between(landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> Setting | None:
    """A point of the frontier between the smallest that holds and the least harmful that does not.

    Levels grow about as a power of the harm, which tells where the limit is; two of three times it
    is believed. Bytes and harms are compared, not places: the frontier changes while candidates are
    fitted, and what was on it may now be larger than others that do less harm.
    """
    low, high, size = -math.inf, math.inf, math.inf
    ends: dict[bool, tuple[float, float]] = {}
    for setting, outcome in outcomes.items():
        harm, nbytes = landscape.harm(setting), landscape.nbytes(setting)
        if outcome.held and nbytes < size:
            low, size = harm, nbytes
        elif not outcome.held and harm < high:
            high = harm
        else:
            continue
        ends[outcome.held] = (harm, outcome.level)
    points = [s for s in landscape.frontier if landscape.nbytes(s) < size]
    points = [s for s in points if landscape.harm(s) < high]
    points = [setting for setting in points if setting not in outcomes]
    if not points:
        return None
    start = landscape.start
    if start is not None and low < _GENTLE * start < start < high:
        # As a preset does: the smallest that does no more harm.
        return next((s for s in reversed(points) if landscape.harm(s) <= start), points[0])
    # A level that is no loss says nothing of the scale, nor one far beyond, nor what failed.
    most = _FAR * landscape.limit
    known = sorted(end for end in ends.values() if end[0] > 0 and 0 < end[1] < most)
    if not known or len(outcomes) % 3 == 0:
        ends_apart = landscape.nbytes(points[0]) * landscape.nbytes(points[-1])
        return min(points, key=lambda s: abs(math.log(landscape.nbytes(s) ** 2 / ends_apart)))
    (harm, level), power = known[-1], 1.0
    if len(known) > 1 and known[0][1] < level:
        power = math.log(level / known[0][1]) / math.log(harm / known[0][0])
    target = math.log(harm) + math.log(landscape.limit / level) / power
    return min(points, key=lambda s: abs(math.log(max(landscape.harm(s), 1e-300)) - target))


def ahead(
    landscape: Landscape,
    outcomes: Mapping[Setting, Outcome],
    count: int,
    known: Callable[[Setting], bool],
) -> list[Setting]:
    """What is asked next, and after that, however it turns out: at most ``count`` settings.

    The likeliest come first; those that are ``known`` have been evaluated without having been asked
    for, and are left out.
    """
    wanted: list[Setting] = []
    seen: set[Setting] = set()
    imagined = deque([dict(outcomes)])
    while len(wanted) < count and imagined:
        state = imagined.popleft()
        proposal = propose(landscape, state)
        # Once each: where outcomes hardly matter all ways lead to the same settings, and there are
        # exponentially many ways.
        if proposal is None or proposal.setting in seen:
            continue
        asked = proposal.setting
        seen.add(asked)
        if not known(asked):
            wanted.append(asked)
        doubt = max((outcome.doubt for outcome in state.values()), default=0.0)
        for part, held in ((1.2, False), (0.8, True)):
            imagined.append({**state, asked: Outcome(part * landscape.limit, held, doubt)})
    return wanted


def _safe(landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> Setting | None:
    """A setting about twice as large as all known, unless one of them will hold for sure.

    What confirms settings starts with the safest, and ends there if it is not safe enough. Few
    samples call nothing safe; then it is enough that the largest does no better than one much
    smaller.
    """
    if any(outcome.safe(landscape.limit) for outcome in outcomes.values()):
        return None
    known = sorted(outcomes, key=lambda s: (-landscape.nbytes(s), s))
    most = landscape.nbytes(known[0])
    half = [s for s in known if landscape.nbytes(s) < most / 1.5]
    if half and outcomes[known[0]].level >= outcomes[half[0]].level:
        return None
    larger = [s for s in landscape.frontier if landscape.nbytes(s) > most]
    return min(larger, key=lambda s: abs(landscape.nbytes(s) - 2 * most), default=None)


def _in_doubt(landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> Setting | None:
    """A setting in the middle of the widest gap that the edge may be in.

    Points of the frontier can be far apart. Between them it is the least harmful of those that are
    one or two steps from an end of the gap.
    """
    known = sorted(outcomes, key=lambda s: (-landscape.nbytes(s), s))
    # Not ``>``, which what failed would not be.
    gaps = [
        (landscape.nbytes(larger) / landscape.nbytes(smaller), larger, smaller)
        for larger, smaller in pairwise(known)
        if outcomes[larger].level - outcomes[larger].doubt < landscape.limit
        and not outcomes[smaller].level + outcomes[smaller].doubt <= landscape.limit
    ]
    for ratio, larger, smaller in sorted(gaps, reverse=True):
        if ratio <= _SPACING:
            break
        least = landscape.nbytes(smaller) * ratio**0.25
        most = landscape.nbytes(larger) / ratio**0.25
        near = {*_neighbours(landscape, larger), *_neighbours(landscape, smaller)}
        near = near.union(landscape.frontier).difference(outcomes)
        between = [
            setting
            for setting in near
            if least <= landscape.nbytes(setting) <= most
            and landscape.harm(setting) < landscape.harm(smaller)
        ]
        if between:
            return min(between, key=lambda s: (landscape.harm(s), s))
    return None


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
    """Settings with one layer smaller, alone or with one other a step larger in exchange.

    Only the exchanges that take away most harm for their bytes: as many as there are layers would
    be the square of their number.
    """
    larger: list[tuple[float, int, int]] = []
    for i, layer in enumerate(landscape.layers):
        now = layer[setting[i]]
        steps = [j for j, c in enumerate(layer) if c.nbytes > now.nbytes and c.harm < now.harm]
        if steps:
            step = min(steps, key=lambda j: (layer[j].nbytes, layer[j].harm))
            gain = (now.harm - layer[step].harm) / (layer[step].nbytes - now.nbytes)
            larger.append((-gain, i, step))
    larger.sort()
    for i, layer in enumerate(landscape.layers):
        least = math.inf
        for smaller in sorted(range(len(layer)), key=lambda j: (layer[j].nbytes, layer[j].harm)):
            if layer[smaller].nbytes >= layer[setting[i]].nbytes:
                break
            change = _changed(setting, i, smaller)
            yield change
            # What another beats in bytes and harm is worth no exchange.
            if layer[smaller].harm >= least:
                continue
            least = layer[smaller].harm
            for _, j, step in larger[:_EXCHANGES]:
                if j != i:
                    yield _changed(change, j, step)


def _changed(setting: Setting, layer: int, choice: int) -> Setting:
    return (*setting[:layer], choice, *setting[layer + 1 :])


class _Belief:
    """Gaussian process regression of the level on the harms of the layers.

    Its mean is proportional to the sum of the harms. Layers may turn out more or less harmful than
    predicted, so may single candidates, and sums over layers are off by a little: each adds to the
    covariance of two settings (Rasmussen & Williams 2006, "Gaussian processes for machine
    learning", equations 2.23 and 2.24).
    """

    def __init__(self, landscape: Landscape, outcomes: Mapping[Setting, Outcome]) -> None:
        self.limit = landscape.limit
        self.tables = [np.array([c.harm for c in layer]) for layer in landscape.layers]
        known = {s: o.level for s, o in outcomes.items() if math.isfinite(o.level)}
        levels = np.array(list(known.values()))
        # Far beyond the budget the sum is only roughly right.
        noise = (_SCATTER * np.maximum(np.abs(levels) - self.limit, 0.1 * self.limit)) ** 2
        noise += np.array([outcomes[setting].doubt for setting in known]) ** 2
        self.choices = np.array(list(known))
        totals = self._harms(self.choices).sum(1)
        weights = totals / (noise + (_SCATTER * self.limit) ** 2)
        self.scale = max(float(weights @ levels) / max(float(weights @ totals), 1e-300), 1e-300)
        self.factor = np.linalg.inv(self._covariance(self.choices, self.choices) + np.diag(noise))
        self.residual = self.factor @ (levels - self.scale * totals)

    def holds(self, settings: Sequence[Setting]) -> npt.NDArray[np.float64]:
        """Probability of each setting to hold."""
        choices = np.array(settings)
        across = self._covariance(choices, self.choices)
        mean = self.scale * self._harms(choices).sum(1) + across @ self.residual
        variance = self._variance(choices) - np.einsum("ij,jk,ik->i", across, self.factor, across)
        margin = (self.limit - mean) / np.sqrt(np.maximum(variance, (1e-3 * self.limit) ** 2))
        probability: npt.NDArray[np.float64] = torch.special.ndtr(torch.from_numpy(margin)).numpy()
        return probability

    def _covariance(
        self, left: npt.NDArray[np.int64], right: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.float64]:
        total = np.full((len(left), len(right)), (self.limit / 2) ** 2)
        apart = np.zeros_like(total)
        for layer, table in enumerate(self.tables):
            own, other = left[:, layer], right[:, layer]
            loss = self.scale * table
            same = 1.0 + (own[:, None] == other[None, :])
            total += _DOUBT**2 * same * loss[own][:, None] * loss[other][None, :]
            apart += np.abs(loss[own][:, None] - loss[other][None, :])
        scatter = _SCATTER * self.limit
        return total + scatter**2 * np.exp(-apart / scatter)

    def _variance(self, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        """The diagonal of the settings' covariance."""
        losses = self.scale * self._harms(choices)
        constant = (self.limit / 2) ** 2 + (_SCATTER * self.limit) ** 2
        variance: npt.NDArray[np.float64] = constant + 2 * _DOUBT**2 * (losses**2).sum(1)
        return variance

    def _harms(self, choices: npt.NDArray[np.int64]) -> npt.NDArray[np.float64]:
        return np.stack([table[choices[:, i]] for i, table in enumerate(self.tables)], axis=1)
