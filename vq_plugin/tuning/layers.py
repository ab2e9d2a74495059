"""The layers of a search: what each may become, what is forecast of that, how it is measured."""

from __future__ import annotations

import statistics
import warnings
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor, nn

from vq_plugin.calibration import Calibration, input_moments, run_calibration
from vq_plugin.calibration.model_calls import pieces
from vq_plugin.checkpoint import Rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize.coded import FactoredWeight, checked_split, rank_for
from vq_plugin.factorize.fit import Directions, directions, multiplied
from vq_plugin.factors import Factored
from vq_plugin.factors.splits import Split
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.forecast import Expected, Sample, expected_error, expected_nbytes, is_sparse
from vq_plugin.harm import Harm
from vq_plugin.schemes import Scheme
from vq_plugin.select import Form, slots_by_name
from vq_plugin.sensitivity import Sensitivity, felt_moments, sensitivities
from vq_plugin.sizes import float_nbytes, stored_nbytes
from vq_plugin.slot_fit import check_slot
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.result import LayerCandidate

# Parts of what is left of the time for the calibration's pass and for the one of sensitivities.
_PASS = 0.25
# Bits of a weight that inputs of unlike size must cost for a look at codebooks of every input, an
# input that counts for nothing, as a part of the mean, and rows for each center of a codebook.
_UNEVEN, _FAINT, _ROWS_PER_CENTER = 1.0, 1e-4, 8


@dataclass(frozen=True)
class Layer:
    """One weight, and what may become of it: schemes, from the largest to the smallest, and float.

    After these, once the ``directions`` of the weight are known, those of ``splits`` that make it
    smaller. ``moments`` say what the outputs of the model feel, ``unfelt`` do not. ``whole`` is the
    harm of noise as large as the weight, which that of others is measured by where ``sensitivity``
    is ``None``.
    """

    name: str
    weight: Tensor
    schemes: tuple[Form | None, ...]
    float_nbytes: int
    stored_nbytes: int
    moments: Moments | None = None
    unfelt: Moments | None = None
    sensitivity: Sensitivity | None = None
    whole: float = 1.0
    splits: Mapping[Factored, Split] = field(default_factory=dict)
    directions: Mapping[type[Split], Directions] = field(default_factory=dict)

    @cached_property
    @cpu_by_default()
    def forecasts(self) -> list[LayerCandidate]:
        """All candidates before their fits.

        What is trained goes by its geometry, what is not by a fit of a sample, which costs little.
        """
        counts = None if self.moments is None else self.moments.outputs
        if counts is None:
            counts = torch.ones(len(self.weight), dtype=torch.float64)
        sample, sparse = Sample.of(self.weight, counts), is_sparse(self.weight)
        found = []
        for scheme in self.schemes:
            if scheme is None:
                found.append(LayerCandidate(None, self.stored_nbytes, 0.0, 0.0))
                continue
            if isinstance(scheme, Factored):
                nbytes, error = self._of_factors(scheme, counts)
            else:
                nbytes, error = self._coded(scheme, self.weight, sample, sparse=sparse)
            found.append(LayerCandidate(scheme, round(nbytes), error, error * self.whole))
        return found

    @property
    def unforeseen(self) -> list[int]:
        """Candidates that forecasts know too little of: codebooks of every input.

        They are for inputs that differ in size, such as features as they were measured. Steps as
        long for all of them take half the logarithm of their mean square over its geometric mean
        in bits of each weight, more than steps by input would.
        """
        if self.moments is None or self.moments.second is None:
            return []
        squares = self.moments.centered().diagonal.double()
        if len(squares) > 1:
            return []
        mean = squares.mean()
        spread = (mean / squares.clamp_min(_FAINT * mean)).log2().mean() / 2
        if not float(spread) > _UNEVEN:
            return []
        most, shape = len(self.weight) / _ROWS_PER_CENTER, tuple(self.weight.shape)
        return [
            at
            for at, scheme in enumerate(self.schemes)
            if not (scheme is None or isinstance(scheme, Factored))
            and scheme.feels
            and not (cut := scheme.geometry(shape)).shared
            and cut.k <= most
        ]

    def _coded(
        self, scheme: Scheme, weight: Tensor, sample: Sample, *, sparse: bool = False
    ) -> Expected:
        """Of a weight, or one of its factors; the error is over its size."""
        shape = tuple(weight.shape)
        if not scheme.trains:
            nbytes, error = sample.expected(self.name, scheme, shape)
            return Expected(nbytes, error / sample.size if sample.size > 0 else 0.0)
        geometry = scheme.geometry(shape)
        nbytes = expected_nbytes(geometry, weight) if sparse else geometry.nbytes
        return Expected(nbytes, expected_error(geometry))

    def _of_factors(self, form: Factored, counts: Tensor) -> Expected:
        """What the rank loses, and what codes lose of the rest."""
        split = self.splits[form]
        found = self.directions[type(split)]
        rank = rank_for(form, split, found)
        squares = found.singular.square()
        total = float(squares.sum())
        error = lost = float(squares[rank:].sum()) / total if total > 0 else 0.0
        nbytes = 0.0
        left, (right,) = multiplied([split], [self.weight], found.left[:, :, :rank])
        first, second = split.weights(left, right)
        # An error of the first counts as what the second makes of it.
        for part, each in ((first, left.square().sum(1).flatten()), (second, counts)):
            coded = self._coded(form.scheme, part, Sample.of(part, each))
            nbytes += coded.nbytes
            error += (1 - lost) * coded.error
        return Expected(nbytes, error)

    def measured(self, small: CodebookWeight | FactoredWeight, nbytes: int) -> LayerCandidate:
        """A candidate after its fit."""
        change = small.decode() - self.weight
        error = self._seen.output_error(change) / self._size if self._size > 0 else 0.0
        harm = error * self.whole
        if self.sensitivity is not None:
            harm = self._harm(change)
        return LayerCandidate(small.scheme, nbytes, error, harm)

    @cached_property
    def _harm(self) -> Harm:
        return Harm.of(self.weight, self.moments, self.sensitivity)

    @property
    def _seen(self) -> Moments:
        return self.moments or Moments(torch.ones((), device="cpu"))

    @cached_property
    def _size(self) -> float:
        """The error that would be as large as the outputs."""
        return self._seen.output_error(self.weight)


class _Limited:
    """Batches while there is time for them, in small pieces, but at least one."""

    def __init__(self, model: nn.Module, batches: Collection[object], deadline: Deadline) -> None:
        self.deadline = deadline
        self.read: list[object] = []
        self.batches = list(batches)
        if deadline.limited and self.batches:
            try:
                run_calibration(model, [next(pieces(self.batches[0]))[0]])
            except Exception:  # noqa: BLE001 - what looks like samples may be anything
                return
            self.batches = [ways[0] for batch in batches for ways in pieces(batch)]

    def __iter__(self) -> Iterator[object]:
        for batch in self.batches:
            if self.read and self.deadline.passed:
                return
            self.read.append(batch)
            yield batch


def layers_of(
    model: nn.Module, space: Mapping[str, tuple[Form | None, ...]], rest: Rest | None = None
) -> tuple[Layer, ...]:
    """The layers of a search, of which nothing is known yet.

    ``space`` is of :func:`vq_plugin.tuning.space.search_space`. A ValueError names a layer that
    cannot be compressed.
    """
    slots = slots_by_name(model, space)
    for name, ladder in space.items():
        # Those left may be whatever they like.
        if any(ladder):
            check_slot(slots[name])
    layers = []
    for name, ladder in space.items():
        slot = slots[name]
        sizes = float_nbytes([slot.value]), stored_nbytes([slot.value], rest)
        plain = tuple(each for each in ladder if not isinstance(each, Factored))
        splits = {each: checked_split(slot, each) for each in ladder if isinstance(each, Factored)}
        layer = _ordered(Layer(slot.name, slot.weight.detach(), plain, *sizes, splits=splits))
        layers.append(layer if any(plain) else _decomposed(layer))
    return tuple(layers)


def observed(
    layers: tuple[Layer, ...],
    model: nn.Module,
    calibration: Calibration | None,
    seed: int,
    deadline: Deadline,
) -> tuple[tuple[Layer, ...], str | None]:
    """The layers with their inputs, what the outputs feel of them, and their factors.

    Beside them, what a deadline cut off. A ValueError names a layer that the calibration does not
    reach.
    """
    cuts: list[str | None] = []
    if calibration is None:
        warnings.warn(
            "no calibration data: what a layer costs in accuracy is guessed from the error of its "
            "weight alone; pass unlabelled inputs as calibration= to measure it",
            stacklevel=4,
        )
    elif deadline.passed:
        cuts.append("calibration was not read")
    else:
        layers, cut = _felt(layers, model, calibration, seed, deadline)
        cuts.append(cut)
    until = deadline.share(_PASS)
    with worker_pool():
        layers = tuple(
            deterministic_map(lambda each: each if until.passed else _decomposed(each), layers)
        )
    late = sum(bool(layer.splits) and not layer.directions for layer in layers)
    if late:
        cuts.append(f"factors of {late} layers were not looked at")
    return layers, "; ".join(filter(None, cuts)) or None


def _felt(
    layers: tuple[Layer, ...],
    model: nn.Module,
    calibration: Calibration,
    seed: int,
    deadline: Deadline,
) -> tuple[tuple[Layer, ...], str | None]:
    """The layers with their inputs and what the outputs feel; how much of the data was read."""
    slots = slots_by_name(model, [layer.name for layer in layers])
    # Those left may well be out of the calibration's reach.
    changing = [slots[layer.name] for layer in layers if layer.splits or any(layer.schemes)]
    cut = None
    if isinstance(calibration, Collection):
        limited = _Limited(model, calibration, deadline.share(_PASS))
        moments = input_moments(model, changing, limited)
        if len(limited.read) < len(limited.batches):
            part = len(limited.read) / len(limited.batches)
            cut = f"calibration stopped after {part:.0%} of its data"
        calibration = limited.read
    else:
        moments = input_moments(model, changing, calibration)
    until = deadline.share(_PASS)
    found = sensitivities(
        model, changing, calibration, moments, seed=seed, late=lambda: until.passed
    )
    felt = moments | felt_moments(changing, moments, found)
    wholes = {
        name: Harm.of(slots[name].weight, felt.get(name), each).of_noise(slots[name].weight)
        for name, each in found.items()
    }
    typical = statistics.median(wholes.values()) if wholes else 1.0
    return tuple(
        replace(
            layer,
            moments=felt.get(layer.name),
            unfelt=moments.get(layer.name),
            sensitivity=found.get(layer.name),
            whole=wholes.get(layer.name) or typical,
        )
        for layer in layers
    ), cut


def _decomposed(layer: Layer) -> Layer:
    """With factors among its candidates, those that make it smaller."""
    if not layer.splits:
        return layer
    kinds = {type(split): split for split in layer.splits.values()}
    found = {
        kind: directions([split], [layer.weight], [layer.moments]) for kind, split in kinds.items()
    }
    plain = [each for each in layer.schemes if not isinstance(each, Factored)]
    smaller = []
    for each, split in layer.splits.items():
        rank = rank_for(each, split, found[type(split)])
        if rank * split.size <= layer.weight.numel():
            smaller.append(each)
    return replace(layer, schemes=(*plain, *smaller), directions=found)


def _ordered(layer: Layer) -> Layer:
    forecasts = sorted(layer.forecasts, key=lambda each: -each.nbytes)
    return replace(layer, schemes=tuple(each.scheme for each in forecasts))
