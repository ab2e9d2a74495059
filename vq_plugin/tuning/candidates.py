"""Every layer by every scheme: forecast at first, fitted and measured where the search asks."""

from __future__ import annotations

import logging
import statistics
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property, partial
from typing import NamedTuple, TypeAlias

import torch
from torch import Tensor, nn

from vq_plugin.calibration import Calibration, input_moments, run_calibration
from vq_plugin.checkpoint import Rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.forecast import Guess, Sample, expected_error, expected_nbytes, forecast, is_sparse
from vq_plugin.progress import progress
from vq_plugin.schemes import Scheme
from vq_plugin.select import slots_by_name
from vq_plugin.sensitivity import Sensitivity, felt_moments, pieces, sensitivities
from vq_plugin.sizes import file_nbytes, float_nbytes, stored_nbytes
from vq_plugin.slot_fit import check_slot, fit_named
from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.orphans import EndsWithItsCaller
from vq_plugin.tuning.result import LayerCandidate, LayerLadder

_log = logging.getLogger(__name__)

# A candidate: the index of its layer, and its own there.
Pair: TypeAlias = tuple[int, int]

# Parts of what is left of the time for the calibration's pass and for the one of sensitivities.
_PASS = 0.25


@dataclass(frozen=True)
class Layer:
    """One weight, and the schemes that it may have, from the largest to the smallest.

    ``whole`` is the harm of an error as large as the weight, which that of others is measured by
    where ``sensitivity`` is ``None``.
    """

    name: str
    weight: Tensor
    schemes: tuple[Scheme | None, ...]
    float_nbytes: int
    stored_nbytes: int
    moments: Moments | None = None
    sensitivity: Sensitivity | None = None
    whole: float = 1.0

    @cached_property
    @cpu_by_default()
    def forecasts(self) -> list[LayerCandidate]:
        """All candidates before their fits.

        What is trained goes by its geometry, what is not by a fit of a sample, which costs little.
        """
        shape = tuple(self.weight.shape)
        counts = None if self.moments is None else self.moments.outputs
        sample = Sample.of(self.weight, torch.ones(shape[0]).double() if counts is None else counts)
        sparse = is_sparse(self.weight)
        found = []
        for scheme in self.schemes:
            if scheme is None:
                found.append(LayerCandidate(None, self.stored_nbytes, 0.0, 0.0))
                continue
            if scheme.trains:
                geometry = scheme.geometry(shape)
                nbytes: float = geometry.nbytes
                if sparse:
                    nbytes = expected_nbytes(geometry, self.weight)
                error = expected_error(geometry)
            else:
                expected = sample.expected(self.name, scheme, shape)
                nbytes = expected.nbytes
                error = expected.error / sample.size if sample.size > 0 else 0.0
            found.append(LayerCandidate(scheme, round(nbytes), error, error * self.whole))
        return found

    def measured(self, small: CodebookWeight, nbytes: int) -> LayerCandidate:
        """A candidate after its fit."""
        change = small.decode() - self.weight
        error = self._seen.output_error(change) / self._size if self._size > 0 else 0.0
        harm = error * self.whole
        if self.sensitivity is not None:
            harm = self.sensitivity.harm(change)
        return LayerCandidate(small.scheme, nbytes, error, harm)

    @property
    def _seen(self) -> Moments:
        return self.moments or Moments(torch.ones((), device="cpu"))

    @cached_property
    def _size(self) -> float:
        """The error that would be as large as the outputs."""
        return self._seen.output_error(self.weight)


class _Fitted(NamedTuple):
    small: CodebookWeight
    candidate: LayerCandidate
    seconds: float


@dataclass(frozen=True)
class _Task:
    """One fit; small enough to travel to another machine, unlike the model."""

    layer: Layer
    scheme: Scheme
    seed: int

    def __call__(self) -> _Fitted:
        start, layer = time.monotonic(), self.layer
        moments = layer.moments
        if moments is not None and not self.scheme.feels:
            moments = replace(moments, outputs=None)
        small = fit_named(layer.name, layer.weight, self.scheme, moments=moments, seed=self.seed)
        found = layer.measured(small, file_nbytes(small))
        return _Fitted(small, found, time.monotonic() - start)


@dataclass
class Fits:
    """The layers of a search and the fits made so far; each is made once."""

    layers: tuple[Layer, ...]
    seed: int = 0
    workers: int = 1
    backend: str = "loky"
    fitted: dict[Pair, _Fitted] = field(default_factory=dict)

    def know(self, layers: tuple[Layer, ...]) -> None:
        """Takes more that is known of the layers; fits that are there stay, measured anew."""
        self.layers = layers
        for pair, old in self.fitted.items():
            found = layers[pair[0]].measured(old.small, old.candidate.nbytes)
            self.fitted[pair] = old._replace(candidate=found)

    def schemes(self, setting: Setting) -> dict[str, Scheme | None]:
        """A setting, layer by layer."""
        return {
            layer.name: layer.schemes[choice]
            for layer, choice in zip(self.layers, setting, strict=True)
        }

    def chosen(self, setting: Setting) -> dict[str, CodebookWeight]:
        """The compressed weights of a setting by layer name, without the layers left."""
        return {
            self.layers[pair[0]].name: self.fitted[pair].small
            for pair in enumerate(setting)
            if self._scheme(pair) is not None
        }

    def gentlest(self) -> Setting:
        """The candidate of each layer that is expected to have the least error, but for float."""

        def error(layer: Layer, choice: int) -> tuple[bool, float]:
            return layer.schemes[choice] is None, layer.forecasts[choice].error

        return tuple(
            min(range(len(layer.schemes)), key=partial(error, layer)) for layer in self.layers
        )

    def candidates(self, known: Collection[Pair]) -> list[list[LayerCandidate]]:
        """All candidates by layer: those ``known`` as they were fitted, the others as forecast."""
        ladders = [layer.forecasts for layer in self.layers]
        found: list[dict[int, LayerCandidate]] = [{} for _ in self.layers]
        for layer, choice in known:
            if (layer, choice) in self.fitted:
                found[layer][choice] = self.fitted[layer, choice].candidate

        def corrected(value: Callable[[LayerCandidate], float]) -> list[list[float]]:
            return forecast(
                [
                    [Guess(c.scheme and c.scheme.method, c.error, value(c)) for c in ladder]
                    for ladder in ladders
                ],
                [{at: value(c) for at, c in layer.items()} for layer in found],
            )

        sizes, harms = corrected(lambda c: c.nbytes), corrected(lambda c: c.harm)
        return [
            [
                found[i].get(j, replace(each, nbytes=round(sizes[i][j]), harm=harms[i][j]))
                for j, each in enumerate(ladder)
            ]
            for i, ladder in enumerate(ladders)
        ]

    def measured(self, setting: Setting) -> list[LayerCandidate]:
        """The candidates of a setting whose fits are there."""
        return [
            self.layers[pair[0]].forecasts[pair[1]]
            if self._scheme(pair) is None
            else self.fitted[pair].candidate
            for pair in enumerate(setting)
        ]

    def ladders(self, known: Collection[Pair]) -> tuple[LayerLadder, ...]:
        """What is known by layer, from the largest to the smallest."""
        return tuple(
            LayerLadder(
                layer.name,
                tuple(layer.weight.shape),
                layer.float_nbytes,
                tuple(
                    sorted(
                        (
                            layer.forecasts[j] if scheme is None else self.fitted[i, j].candidate
                            for j, scheme in enumerate(layer.schemes)
                            if scheme is None or (i, j) in known
                        ),
                        key=lambda c: (-c.nbytes, c.error),
                    )
                ),
            )
            for i, layer in enumerate(self.layers)
        )

    def missing(self, settings: Iterable[Setting]) -> list[Pair]:
        """The candidates of settings that are not fitted yet, the smallest layers first."""
        pairs = dict.fromkeys(pair for setting in settings for pair in enumerate(setting))
        return sorted(
            (p for p in pairs if self._scheme(p) is not None and p not in self.fitted),
            key=lambda pair: (self.layers[pair[0]].weight.numel(), pair),
        )

    def fit(self, settings: Iterable[Setting], deadline: Deadline) -> bool:
        """Fits what settings want, and says whether all of it could be done in time."""
        wanted = self.missing(settings)
        for pair, found in self._run(wanted, deadline):
            self.fitted[pair] = found
            name, small = self.layers[pair[0]].name, found.candidate
            _log.debug("%s %s: %d bytes, %.2f s", name, small.scheme, small.nbytes, found.seconds)
        return all(pair in self.fitted for pair in wanted)

    def _run(self, pairs: list[Pair], deadline: Deadline) -> Iterator[tuple[Pair, _Fitted]]:
        bar = progress(desc="fit", total=len(pairs), unit="fit", leave=False)
        seen: dict[Pair, _Fitted] = {}

        def begin(pair: Pair) -> bool:
            return not deadline.passed and self._seconds(pair, seen) <= deadline.left

        if self.workers > 1 and pairs:
            import joblib

            begun: list[Pair] = []

            def calls() -> Iterator[object]:
                for pair in pairs:
                    if begin(pair):
                        begun.append(pair)
                        yield joblib.delayed(EndsWithItsCaller(self._task(pair)))()

            with bar, joblib.parallel_config(backend=self.backend, n_jobs=self.workers):
                results = joblib.Parallel(return_as="generator")(calls())
                for index, result in enumerate(results):
                    bar.update()
                    yield begun[index], result
            return

        def call(pair: Pair) -> _Fitted | None:
            if not begin(pair):
                return None
            seen[pair] = found = self._task(pair)()
            bar.update()
            return found

        with bar, worker_pool():
            for pair, found in zip(pairs, deterministic_map(call, pairs), strict=True):
                if found is not None:
                    yield pair, found

    def _task(self, pair: Pair) -> _Task:
        scheme = self._scheme(pair)
        assert scheme is not None
        return _Task(self.layers[pair[0]], scheme, self.seed)

    def _seconds(self, pair: Pair, seen: Mapping[Pair, _Fitted]) -> float:
        """About how long a fit will take: as one of the same scheme, weight by weight."""
        known = {**self.fitted, **seen}
        paces = {
            other: found.seconds / self.layers[other[0]].weight.numel()
            for other, found in known.items()
        }
        same = [pace for other, pace in paces.items() if self._scheme(other) == self._scheme(pair)]
        pace = statistics.median(same or paces.values() or [0.0])
        return pace * self.layers[pair[0]].weight.numel()

    def _scheme(self, pair: Pair) -> Scheme | None:
        return self.layers[pair[0]].schemes[pair[1]]


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
    model: nn.Module, space: Mapping[str, tuple[Scheme | None, ...]], rest: Rest | None = None
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
        layers.append(_ordered(Layer(slot.name, slot.weight.detach(), ladder, *sizes)))
    return tuple(layers)


def observed(
    layers: tuple[Layer, ...],
    model: nn.Module,
    calibration: Calibration | None,
    seed: int,
    deadline: Deadline,
) -> tuple[tuple[Layer, ...], str | None]:
    """The layers with their inputs, and what the outputs feel of them; what a deadline cut off.

    A ValueError names a layer that the calibration does not reach.
    """
    if calibration is None:
        warnings.warn(
            "no calibration data: what a layer costs in accuracy is guessed from the error of its "
            "weight alone; pass unlabelled inputs as calibration= to measure it",
            stacklevel=4,
        )
        return layers, None
    if deadline.passed:
        return layers, "calibration was not read"
    slots = slots_by_name(model, [layer.name for layer in layers])
    # Those left may well be out of the calibration's reach.
    changing = [slots[layer.name] for layer in layers if any(layer.schemes)]
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
    moments |= felt_moments(changing, moments, found)
    wholes = {name: each.harm(slots[name].weight) for name, each in found.items()}
    typical = statistics.median(wholes.values()) if wholes else 1.0
    return tuple(
        replace(
            layer,
            moments=moments.get(layer.name),
            sensitivity=found.get(layer.name),
            whole=wholes.get(layer.name) or typical,
        )
        for layer in layers
    ), cut


def _ordered(layer: Layer) -> Layer:
    forecasts = sorted(layer.forecasts, key=lambda each: -each.nbytes)
    return replace(layer, schemes=tuple(each.scheme for each in forecasts))
