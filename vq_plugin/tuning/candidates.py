"""Every layer by every scheme: fitted once, measured once, used by every trial."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import TypeVar

import torch
from torch import Tensor, nn
from tqdm import tqdm

from vq_plugin.calibration import Calibration, input_moments
from vq_plugin.checkpoint import Rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.nn import Slot
from vq_plugin.progress import progress
from vq_plugin.schemes import Scheme
from vq_plugin.select import slots_by_name
from vq_plugin.sizes import file_nbytes, float_nbytes, stored_nbytes
from vq_plugin.slot_fit import check_slot, fit_named
from vq_plugin.tuning.allocation import Setting, pareto
from vq_plugin.tuning.harm import OutputChange
from vq_plugin.tuning.result import LayerCandidate, LayerLadder

T = TypeVar("T")
R = TypeVar("R")


@dataclass(frozen=True)
class Fits:
    """The candidates of a model worth keeping, and the compressed weights behind them."""

    layers: tuple[LayerLadder, ...]
    weights: Mapping[tuple[str, Scheme], CodebookWeight]

    def schemes(self, setting: Setting) -> dict[str, Scheme | None]:
        """A setting, layer by layer."""
        return {
            layer.name: layer.candidates[choice].scheme
            for layer, choice in zip(self.layers, setting, strict=True)
        }

    def chosen(self, setting: Setting) -> dict[str, CodebookWeight]:
        """The compressed weights of a setting by layer name, without the layers left."""
        return {
            name: self.weights[name, scheme]
            for name, scheme in self.schemes(setting).items()
            if scheme is not None
        }


@dataclass(frozen=True)
class _Task:
    """One fit; small enough to travel to another machine, unlike the model."""

    name: str
    weight: Tensor
    scheme: Scheme
    moments: Moments | None
    seed: int

    def __call__(self) -> tuple[CodebookWeight, LayerCandidate]:
        small = fit_named(self.name, self.weight, self.scheme, moments=self.moments, seed=self.seed)
        error = _relative_error(self.weight, small.decode(), self.moments)
        return small, LayerCandidate(self.scheme, file_nbytes(small), error, error)


def fit_candidates(
    model: nn.Module,
    space: Mapping[str, tuple[Scheme | None, ...]],
    calibration: Calibration | None,
    *,
    seed: int,
    workers: int,
    backend: str,
    rest: Rest | None = None,
) -> Fits:
    """Fits and measures every candidate; keeps those that no other beats, from the largest on.

    Takes what :func:`vq_plugin.tune` does, and ``space`` of
    :func:`vq_plugin.tuning.space.search_space`. A ValueError names a layer that cannot be
    compressed, or that the calibration does not reach.
    """
    slots = slots_by_name(model, space)
    # Those left may well be out of the calibration's reach.
    changing = [slots[name] for name, ladder in space.items() if any(ladder)]
    for slot in changing:
        check_slot(slot)
    moments: Mapping[str, Moments] = {}
    if calibration is None:
        warnings.warn(
            "no calibration data: what a layer costs in accuracy is guessed from the error of its "
            "weight alone; pass unlabelled inputs as calibration= to measure it",
            stacklevel=3,
        )
    else:
        moments = input_moments(model, changing, calibration)
    tasks = [
        _Task(name, slots[name].weight.detach(), scheme, moments.get(name), seed)
        for name, ladder in space.items()
        for scheme in ladder
        if scheme is not None
    ]
    weights: dict[tuple[str, Scheme], CodebookWeight] = {}
    measured: dict[str, list[LayerCandidate]] = {name: [] for name in space}
    for task, (small, candidate) in zip(tasks, _run(tasks, workers, backend), strict=True):
        weights[task.name, task.scheme] = small
        measured[task.name].append(candidate)
    for name, ladder in space.items():
        if None in ladder:
            nbytes = stored_nbytes([slots[name].value], rest)
            measured[name].append(LayerCandidate(None, nbytes, 0.0, 0.0))
    kept = {name: pareto(candidates) for name, candidates in measured.items()}
    if calibration is not None:
        kept = _measure(OutputChange(model, calibration), slots, kept, weights)
    layers = []
    for name, candidates in kept.items():
        slot = slots[name]
        size = float_nbytes([slot.value])
        layers.append(LayerLadder(slot.name, slot.view.shape, size, tuple(candidates)))
    used = {(name, each.scheme) for name, candidates in kept.items() for each in candidates}
    return Fits(tuple(layers), {key: small for key, small in weights.items() if key in used})


def _run(
    tasks: list[_Task], workers: int, backend: str
) -> list[tuple[CodebookWeight, LayerCandidate]]:
    if workers == 1:
        return _mapped(_Task.__call__, tasks, "fit")
    import joblib

    with joblib.parallel_config(backend=backend, n_jobs=workers):
        calls = (joblib.delayed(task)() for task in tasks)
        return list(_bar(joblib.Parallel(return_as="generator")(calls), len(tasks), "fit"))


def _measure(
    change: OutputChange,
    slots: Mapping[str, Slot],
    kept: Mapping[str, list[LayerCandidate]],
    weights: Mapping[tuple[str, Scheme], CodebookWeight],
) -> dict[str, list[LayerCandidate]]:
    """The candidates with the harm that each does to the model's output."""

    def harm(task: tuple[str, LayerCandidate]) -> LayerCandidate:
        name, candidate = task
        if candidate.scheme is None:
            return candidate
        return replace(candidate, harm=change(slots[name], weights[name, candidate.scheme]))

    tasks = [(name, candidate) for name, candidates in kept.items() for candidate in candidates]
    measured = _mapped(harm, tasks, "harm")
    found: dict[str, list[LayerCandidate]] = {name: [] for name in kept}
    for (name, _), candidate in zip(tasks, measured, strict=True):
        if math.isfinite(candidate.harm):
            found[name].append(candidate)
    for name, candidates in found.items():
        if not candidates:
            raise ValueError(
                f"layer {name!r}: every candidate makes the model's output infinite or NaN; "
                "add None to its candidates to leave it in float"
            )
    return found


def _mapped(function: Callable[[T], R], items: list[T], what: str) -> list[R]:
    """Several at a time in this process, with a bar."""

    def call(item: T) -> R:
        result = function(item)
        bar.update()
        return result

    with _bar(None, len(items), what) as bar, worker_pool():
        return deterministic_map(call, items)


def _bar(items: Iterable[T] | None, total: int, what: str) -> tqdm[T]:
    return progress(items, desc=what, total=total, unit="fit", leave=False)


def _relative_error(weight: Tensor, decoded: Tensor, moments: Moments | None) -> float:
    seen = moments or Moments(torch.ones(()))
    size = seen.output_error(weight)
    return seen.output_error(decoded - weight) / size if size > 0 else 0.0
