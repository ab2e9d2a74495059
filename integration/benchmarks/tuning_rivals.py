"""Other ways to choose schemes within a loss budget, on the same ladder and the same fits."""

from __future__ import annotations

import hashlib
import math
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import quiet
from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import CodebookLayer
from vq_plugin.replace import assemble
from vq_plugin.select import slots_by_name
from vq_plugin.tuning.space import search_space
from vq_plugin.workloads.training import correct

Setting = Mapping[str, vq.Scheme | None]
# The default of NNCF's ``ranking_subset_size``.
_RANKING_IMAGES = 300


@dataclass(frozen=True)
class Chosen:
    """What a method came to.

    Attributes:
        method: Its name.
        model: The model; the float one if it found nothing.
        evaluations: Of whole models on the whole tuning split, without the float model's.
        subset_evaluations: Those on a subset of the images.
        seconds: Fits and evaluations that this method needs if it runs alone.
        what: The setting, in words.
    """

    method: str
    model: nn.Module
    evaluations: int
    subset_evaluations: int
    seconds: float
    what: str


@dataclass
class Memo:
    """An ``evaluate`` for :func:`vq_plugin.tune` that looks at no model twice.

    Methods share it, so that what one has evaluated costs the next no time; each counts its own.
    """

    images: Tensor
    labels: Tensor
    known: dict[str, tuple[Tensor, float]] = field(default_factory=dict)

    def __call__(self, model: nn.Module) -> Tensor:
        return self.timed(model)[0]

    def timed(self, model: nn.Module) -> tuple[Tensor, float]:
        """Which images the model gets right, and how long the first evaluation took."""
        key = fingerprint(model)
        if key not in self.known:
            start = time.perf_counter()
            hits = correct(model, self.images, self.labels)
            self.known[key] = hits, time.perf_counter() - start
        return self.known[key]


@dataclass
class Meter:
    """A method's own count of its evaluations."""

    memo: Memo
    count: int = 0
    subsets: int = 0
    seconds: float = 0.0

    def __call__(self, model: nn.Module) -> Tensor:
        hits, seconds = self.memo.timed(model)
        self.count += 1
        self.seconds += seconds
        return hits

    def subset(self, model: nn.Module, indices: Tensor) -> float:
        """Accuracy on some of the images."""
        start = time.perf_counter()
        hits = correct(model, self.memo.images[indices], self.memo.labels[indices])
        self.subsets += 1
        self.seconds += time.perf_counter() - start
        return mean(hits)


class Bench:
    """A trained model, its data and the budget; what stays the same for all seeds."""

    def __init__(self, workload: ModuleType, name: str, ladder: Sequence[vq.Scheme | None]) -> None:
        self.name = name
        self.model: nn.Module = workload.model()
        self.calibration = workload.calibration()
        self.ladder = tuple(ladder)
        self.layers = tuple(search_space(self.model, ladder))
        self.budget = vq.LossBudget(relative=0.01)
        self.tuning = settings.tuning_images(name)
        self.test = settings.test_images(name)
        self.hits = correct(self.model, *self.tuning)
        self.test_accuracy = mean(correct(self.model, *self.test))
        self.float_bytes = sum(v.nbytes for v in self.model.state_dict().values())

    @property
    def schemes(self) -> list[vq.Scheme]:
        """The ladder without "leave it"."""
        return [scheme for scheme in self.ladder if scheme is not None]

    def loss(self, hits: Tensor) -> float:
        """On the tuning split, in the budget's unit."""
        return self.budget.loss(mean(self.hits), mean(hits))

    def holds(self, hits: Tensor) -> bool:
        return self.budget.holds(mean(self.hits), mean(hits))

    def test_loss(self, model: nn.Module) -> float:
        return self.budget.loss(self.test_accuracy, mean(correct(model, *self.test)))


class Fits:
    """Every layer by every scheme of the ladder, through ``vq.compress`` with one seed."""

    def __init__(self, bench: Bench, seed: int) -> None:
        self.bench = bench
        self.seed = seed
        self.weights: dict[tuple[str, vq.Scheme], CodebookWeight] = {}
        self.seconds: dict[vq.Scheme, float] = {}
        for scheme in bench.schemes:
            start = time.perf_counter()
            small = vq.compress(
                bench.model, dict.fromkeys(bench.layers, scheme), bench.calibration, seed
            )
            self.seconds[scheme] = time.perf_counter() - start
            for name in bench.layers:
                self.weights[name, scheme] = small.get_submodule(name).codebook_weight

    def build(self, setting: Setting) -> nn.Module:
        """The model of a setting; layers that it does not name stay float."""
        chosen = {name: self.weights[name, s] for name, s in setting.items() if s is not None}
        return assemble(self.bench.model, chosen)

    def uniform(self, scheme: vq.Scheme | None) -> dict[str, vq.Scheme | None]:
        return dict.fromkeys(self.bench.layers, scheme)

    def by_size(self) -> dict[vq.Scheme, int]:
        """File sizes of the uniform models, the smallest first."""
        sizes = {s: file_bytes(self.build(self.uniform(s))) for s in self.bench.schemes}
        return dict(sorted(sizes.items(), key=lambda item: item[1]))


def best_uniform(fits: Fits, memo: Memo, *, spare_ends: bool = False) -> Chosen:
    """Every scheme of the ladder on all layers; of those that hold, the smallest file.

    Args:
        fits: The fits.
        memo: Evaluates.
        spare_ends: Leaves the first and the last layer in float, as people often do by hand.
    """
    meter = Meter(memo)
    layers = fits.bench.layers
    ends = {layers[0]: None, layers[-1]: None} if spare_ends else {}
    best, what, size = fits.bench.model, "float", math.inf
    for scheme in fits.bench.schemes:
        model = fits.build(fits.uniform(scheme) | ends)
        if fits.bench.holds(meter(model)) and file_bytes(model) < size:
            best, what, size = model, str(scheme), file_bytes(model)
    seconds = meter.seconds + sum(fits.seconds.values())
    method = "best uniform, ends float" if spare_ends else "best uniform (exhaustive)"
    return Chosen(method, best, meter.count, 0, seconds, what)


def inc_autotune(fits: Fits, memo: Memo, *, real: bool) -> Chosen:
    """The first uniform scheme within the budget, the smallest first: INC's ``autotune``.

    Args:
        fits: The fits.
        memo: Evaluates.
        real: Lets INC's own function choose; otherwise its rule is followed here.
    """
    meter = Meter(memo)
    # The list ends with "leave the model", else INC returns one that breaks the budget.
    ladder = [*fits.by_size(), None]
    if real:
        model = _autotune(fits, ladder, lambda m: mean(meter(m)))
        meter.count -= 1  # INC evaluates the float model itself
    else:
        for scheme in ladder:
            model = fits.build(fits.uniform(scheme))
            if fits.bench.holds(meter(model)):
                break
    tried = ladder[: meter.count]
    seconds = meter.seconds + sum(fits.seconds[s] for s in tried if s is not None)
    method = "INC autotune" if real else "INC autotune's rule"
    return Chosen(method, model, meter.count, 0, seconds, str(tried[-1] or "float"))


def _autotune(
    fits: Fits, ladder: Sequence[vq.Scheme | None], evaluate: Callable[[nn.Module], float]
) -> nn.Module:
    with quiet():
        from neural_compressor.torch.quantization import TuningConfig, autotune

        from vq_plugin.inc import VQConfig
        from vq_plugin.inc.tuning import FittedConfig

        configs = []
        slots = slots_by_name(fits.bench.model, fits.bench.layers)
        for scheme in ladder:
            config = VQConfig(None)
            for name in fits.bench.layers if scheme else ():
                small = fits.weights[name, scheme]
                fitted = FittedConfig.of(slots[name], small, fits.seed, calibrated=True)
                config.set_local(name, fitted)
            configs.append(config)
        tuning = TuningConfig(
            configs, tolerable_loss=fits.bench.budget.limit, max_trials=len(ladder)
        )
        tuned: nn.Module = autotune(fits.bench.model, tuning, evaluate)
    return tuned


def greedy_fallback(fits: Fits, memo: Memo, starts: Sequence[vq.Scheme]) -> Chosen:
    """Layers go back to float, the most harmful first, until the budget holds (NNCF's rule).

    As in NNCF's accuracy control, layers are ranked once by the accuracy that putting each back
    alone restores, on the 300 images on which the compressed model differs most from the float
    one; after every step the model is evaluated on the whole split.

    Args:
        fits: The fits.
        memo: Evaluates.
        starts: Uniform schemes to start from; the smallest file of all counts.
    """
    bench, meter = fits.bench, Meter(memo)
    best, what, size = bench.model, "float", math.inf
    for scheme in starts:
        setting = fits.uniform(scheme)
        model = fits.build(setting)
        hits = meter(model)
        order: list[str] = []
        while not bench.holds(hits) and len(order) < len(bench.layers):
            if not order:
                ranked = _rank(fits, meter, setting, hits)
            order.append(ranked[len(order)])
            model = fits.build(setting | dict.fromkeys(order))
            if file_bytes(model) >= size:
                break
            hits = meter(model)
        else:
            if file_bytes(model) < size:
                best, size = model, file_bytes(model)
                what = f"{scheme}, {len(order)} of {len(bench.layers)} layers float"
    seconds = meter.seconds + sum(fits.seconds[scheme] for scheme in starts)
    return Chosen("greedy fallback (NNCF's)", best, meter.count, meter.subsets, seconds, what)


def _rank(fits: Fits, meter: Meter, setting: Setting, hits: Tensor) -> list[str]:
    differs = (hits.double() - fits.bench.hits.double()).abs()
    indices = torch.argsort(differs, descending=True, stable=True)[:_RANKING_IMAGES]
    restored = {
        name: meter.subset(fits.build({**setting, name: None}), indices)
        for name in fits.bench.layers
    }
    return sorted(restored, key=lambda name: -restored[name])


def fingerprint(model: nn.Module) -> str:
    """Tells models of one architecture apart by their values."""
    found = hashlib.sha256()
    for key, value in model.state_dict().items():
        if isinstance(value, Tensor):
            found.update(f"{key} {value.dtype} {tuple(value.shape)}".encode())
            found.update(value.detach().cpu().reshape(-1).view(torch.uint8).numpy())
    return found.hexdigest()


def file_bytes(model: nn.Module) -> int:
    """Size of the model's file; of the float model, if a method found nothing."""
    if not any(isinstance(module, CodebookLayer) for module in model.modules()):
        return sum(value.nbytes for value in model.state_dict().values())
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.vq"
        vq.save(model, path)
        return path.stat().st_size


def mean(hits: Tensor) -> float:
    return float(hits.double().mean())
