"""Every layer by every scheme: forecast at first, fitted and measured where the search asks."""

from __future__ import annotations

import logging
import statistics
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from typing import NamedTuple, TypeAlias

from vq_plugin.codebook import CodebookWeight
from vq_plugin.factorize.coded import FactoredWeight, fit_factored
from vq_plugin.factors import Factored
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.forecast import Guess, forecast
from vq_plugin.progress import progress
from vq_plugin.select import Form
from vq_plugin.sizes import file_nbytes
from vq_plugin.slot_fit import fit_named
from vq_plugin.tuning.allocation import Setting
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.layers import Layer
from vq_plugin.tuning.orphans import EndsWithItsCaller
from vq_plugin.tuning.result import LayerCandidate, LayerLadder

_log = logging.getLogger(__name__)

# A candidate: the index of its layer, and its own there.
Pair: TypeAlias = tuple[int, int]


class _Fitted(NamedTuple):
    small: CodebookWeight | FactoredWeight
    candidate: LayerCandidate
    seconds: float


@dataclass(frozen=True)
class _Task:
    """One fit; small enough to travel to another machine, unlike the model."""

    layer: Layer
    scheme: Form
    seed: int

    def __call__(self) -> _Fitted:
        start, layer, scheme = time.monotonic(), self.layer, self.scheme
        moments = layer.moments if scheme.feels else layer.unfelt
        name, weight, seed = layer.name, layer.weight, self.seed
        small: CodebookWeight | FactoredWeight
        if isinstance(scheme, Factored):
            split = layer.splits[scheme]
            known = layer.directions[type(split)]
            small = fit_factored(name, weight, scheme, split, known, moments=moments, seed=seed)
        else:
            small = fit_named(name, weight, scheme, moments=moments, seed=seed)
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

    def schemes(self, setting: Setting) -> dict[str, Form | None]:
        """A setting, layer by layer."""
        return {
            layer.name: layer.schemes[choice]
            for layer, choice in zip(self.layers, setting, strict=True)
        }

    def chosen(self, setting: Setting) -> dict[str, CodebookWeight | FactoredWeight]:
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
                # Float is as it is.
                each
                if each.scheme is None
                else found[i].get(j, replace(each, nbytes=round(sizes[i][j]), harm=harms[i][j]))
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

    def look(self, deadline: Deadline) -> set[Pair]:
        """Fits the candidates that are not foreseen, and says which there was time for."""
        pairs = [(i, j) for i, layer in enumerate(self.layers) for j in layer.unforeseen]
        self.fitted.update(self._run([p for p in pairs if p not in self.fitted], deadline))
        return self.fitted.keys() & pairs

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

    def _scheme(self, pair: Pair) -> Form | None:
        return self.layers[pair[0]].schemes[pair[1]]
