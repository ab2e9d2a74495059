"""Schemes chosen weight by weight, within a change of the model that a preset allows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from vq_plugin.allocation import steps
from vq_plugin.calibration import Calibration
from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.fit.output.moments import Moments
from vq_plugin.forecast import Sample
from vq_plugin.harm import Harm
from vq_plugin.nn import Slot
from vq_plugin.output_harm import values
from vq_plugin.progress import progress
from vq_plugin.schemes import Preset
from vq_plugin.sensitivity import Sensitivity, felt_moments, sensitivities
from vq_plugin.sizes import file_nbytes
from vq_plugin.slot_fit import fit_named

# Rounds of choosing and fitting: after each, what was fitted corrects what is expected of the rest.
_ROUNDS = 6
# Where little more can be had, nothing is spent on it: harm may be this many times the least.
_MORE = 1.5


@dataclass(frozen=True)
class _Size:
    """What a weight takes, and the harm that it does."""

    nbytes: float
    harm: float


class _Ladder:
    """The schemes that one weight may get: what is expected of each, and what fits gave."""

    def __init__(
        self, slot: Slot, preset: Preset, moments: Moments | None, felt: Sensitivity | None
    ) -> None:
        self.slot, self.schemes = slot, preset.schemes
        self.moments = moments
        weight = slot.weight.detach().cpu().float()
        self._harm = Harm.of(weight, moments, felt)
        self.fitted: dict[int, CodebookWeight] = {}
        self._measured: dict[int, _Size] = {}
        self._expected = self._sampled(weight, self._harm.noise)

    def sizes(self) -> list[_Size]:
        """Of every scheme, as fitted or else as expected."""
        return [self._measured.get(at, each) for at, each in enumerate(self._expected)]

    def fit(self, at: int, seed: int) -> None:
        """Fits a scheme, and expects of the others of its kind what it shows."""
        weight = self.slot.weight.detach()
        small = fit_named(self.slot.name, weight, self.schemes[at], moments=self.moments, seed=seed)
        change = small.decode().cpu().float() - weight.cpu().float()
        found = _Size(file_nbytes(small), self._harm(change))
        before, kind = self._expected[at], type(self.schemes[at])
        self.fitted[at], self._measured[at] = small, found
        larger, worse = _ratio(found.nbytes, before.nbytes), _ratio(found.harm, before.harm)
        self._expected = [
            _Size(size.nbytes * larger, size.harm * worse) if type(scheme) is kind else size
            for scheme, size in zip(self.schemes, self._expected, strict=True)
        ]

    def _sampled(self, weight: Tensor, felt: Tensor) -> list[_Size]:
        """Fits of some rows, by their weights alone, and by what is ``felt`` of each row."""
        counts = felt / weight.flatten(1).shape[1]
        if self.slot.kind.looks_up:
            # Data look up few rows of a table, and a sample holds few of these.
            counts = counts.mean().expand(len(weight))
        sample, shape = Sample.of(weight, counts), self.slot.view.shape
        return [_Size(*sample.expected(self.slot.name, scheme, shape)) for scheme in self.schemes]


def choose(
    model: nn.Module,
    slots: Mapping[str, Slot],
    preset: Preset,
    moments: Mapping[str, Moments],
    calibration: Calibration | None,
    seed: int,
) -> dict[str, CodebookWeight]:
    """The smallest weights, by the names of their slots, that a preset allows.

    Every weight takes the scheme at which one more byte saved costs the same anywhere (see
    :mod:`vq_plugin.allocation`). What a scheme costs is first expected from fits of a sample, then
    corrected by the fits of what was chosen, and what is given was fitted as a whole.
    """
    felt: Mapping[str, Sensitivity] = {}
    if calibration is not None:
        felt = sensitivities(
            model, slots.values(), calibration, moments, projected=values, seed=seed
        )
        moments = {**moments, **felt_moments(slots.values(), moments, felt)}
    return _chosen(slots, preset, moments, felt, seed)


@cpu_by_default()
def _chosen(
    slots: Mapping[str, Slot],
    preset: Preset,
    moments: Mapping[str, Moments],
    felt: Mapping[str, Sensitivity],
    seed: int,
) -> dict[str, CodebookWeight]:
    ladders = [
        _Ladder(slot, preset, moments.get(name), felt.get(slot.name))
        for name, slot in progress(slots.items(), desc="choose", unit="layer", leave=False)
    ]
    for _ in range(_ROUNDS):
        setting = _smallest([ladder.sizes() for ladder in ladders], preset.change)
        new = [pair for pair in zip(ladders, setting, strict=True) if pair[1] not in pair[0].fitted]
        if not new:
            break
        for ladder, at in progress(new, desc="compress", unit="layer", leave=False):
            ladder.fit(at, seed)
    known = [sorted(ladder.fitted) for ladder in ladders]
    sizes = [
        [ladder.sizes()[at] for at in fitted] for ladder, fitted in zip(ladders, known, strict=True)
    ]
    setting = _smallest(sizes, preset.change)
    return {
        name: ladder.fitted[fitted[at]]
        for name, ladder, fitted, at in zip(slots, ladders, known, setting, strict=True)
    }


def _smallest(layers: Sequence[Sequence[_Size]], change: float) -> list[int]:
    """The choice of every layer that together do no more harm.

    If hardly any or none do, those that do no more than ``_MORE`` times the least.
    """
    least = sum(min(s.harm for s in layer) for layer in layers)
    change = max(change, _MORE * least)
    setting, following = steps([[(s.nbytes, s.harm) for s in layer] for layer in layers])
    harm = sum(layer[at].harm for layer, at in zip(layers, setting, strict=True))
    for layer, at in following:
        harm += layers[layer][at].harm - layers[layer][setting[layer]].harm
        if harm > change:
            break
        setting[layer] = at
    return setting


def _ratio(found: float, expected: float) -> float:
    return found / expected if found > 0 and expected > 0 else 1.0
