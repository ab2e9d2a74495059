"""INC's ``autotune`` with candidates in the right order and an honest end."""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from neural_compressor.torch.quantization import TuningConfig
from torch import nn

from vq_plugin.arguments import brief, check_whole
from vq_plugin.calibration import Calibration, check_batches
from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.gate import Gate
from vq_plugin.inc.tolerance import Tolerance
from vq_plugin.nn import Slot
from vq_plugin.recipe.prepare import prepare
from vq_plugin.recipe.schema import Recipe
from vq_plugin.schemes import Scheme
from vq_plugin.select import Pattern, Schemes, as_patterns, select, slots_by_name
from vq_plugin.sizes import saved_nbytes, setting_nbytes, stored_nbytes
from vq_plugin.ties import sharing
from vq_plugin.tuning import LADDER, LossBudget
from vq_plugin.tuning.allocation import Setting, frontier
from vq_plugin.tuning.candidates import Fits, Pair
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.identity import digest
from vq_plugin.tuning.layers import layers_of, observed
from vq_plugin.tuning.space import Candidates, Ladder, search_space

_TOLERABLE_LOSS, _MAX_TRIALS = 0.01, 25


class FittedConfig(VQConfig):
    """The config of a layer that is fitted; ``source`` is its weight's digest, and the seed."""

    small: CodebookWeight
    source: tuple[str, int]
    calibrated: bool

    @classmethod
    def of(cls, slot: Slot, small: CodebookWeight, seed: int, *, calibrated: bool) -> FittedConfig:
        """The config for a slot and its fit."""
        config = cls(small.scheme, seed, white_list=None)
        config.small, config.source = small, (_digest(slot), seed)
        config.calibrated = calibrated
        return config

    def fit(self, slot: Slot, moments: Moments | None) -> CodebookWeight:
        """The known fit, unless weight or settings changed, or there is calibration at last."""
        news = moments is not None and not self.calibrated
        same = self.small.scheme == self.layer_scheme and self.source == (_digest(slot), self.seed)
        if same and not news:
            return self.small
        return super().fit(slot, moments)


def tuning_config(
    model: nn.Module,
    recipe_or_schemes: str
    | os.PathLike[str]
    | Mapping[Pattern, Ladder]
    | Scheme
    | Sequence[Schemes | str],
    tolerable_loss: float | LossBudget | None = None,
    *,
    calibration: Calibration | None = None,
    max_trials: int | None = None,
    seed: int | None = None,
) -> TuningConfig:
    """Candidates for INC's ``autotune``, from most to least aggressive.

    ``autotune`` returns the first candidate that holds the budget, and if none does, the most
    accurate one although it breaks it. Sorted by their bytes, and closed by a candidate that does
    nothing, the first that holds is the smallest, and there always is one.

    Args:
        model: The float model that ``autotune`` will be given; not changed.
        recipe_or_schemes: Whole-model settings to choose from, as a sequence of what
            :func:`vq_plugin.compress` takes; or patterns to ladders as ``candidates`` of
            :func:`vq_plugin.tune`, which gives the tuner's layer-by-layer frontier; or a recipe
            file, which gives the same and also says what the other arguments leave open.
        tolerable_loss: Largest relative loss; the recipe's, or 0.01. As a
            :class:`vq_plugin.LossBudget` it also says how far outputs have to agree, otherwise the
            recipe does, or its default. INC tolerates what its margin leaves.
        calibration: Unlabelled data, see :func:`vq_plugin.compress`, for the frontier's fits and
            the prediction of harm; ``autotune`` then needs no ``run_fn``. Else the recipe's. A
            sequence of settings takes none: give ``autotune`` a ``run_fn``.
        max_trials: The most candidates, the last one included; a frontier is thinned out to it.
            The recipe's, or 25.
        seed: Seed of the fits; the recipe's, or 0.

    Returns:
        A config for ``autotune``. An ``eval_fn`` that returns NaN then raises ``ValueError``.

    Raises:
        FileNotFoundError: If there is no such recipe.
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If the budget is outside (0, 1) or not one that INC knows, a pattern matches
            nothing, a layer cannot be compressed, or there are more settings than trials.

    Example:
        >>> import torch, vq_plugin as vq
        >>> model = torch.nn.Linear(64, 64)
        >>> config = tuning_config(model, [vq.KM(k=256), vq.KM(k=4), vq.PQ(k=4, dim=4)])
        >>> [str(c.local_config[""].layer_scheme) for c in config.config_set[:-1]]
        ['pq(k=4,dim=4)', 'km(k=4)', 'km(k=256)']
        >>> str(config.config_set[-1].layer_scheme)
        'None'
    """
    criterion = None
    if isinstance(recipe_or_schemes, str | os.PathLike):
        path = Path(recipe_or_schemes)
        prepared = prepare(path, model)
        tuning = prepared.recipe.tuning
        _check_recipe(prepared.recipe, path)
        criterion = tuning.accuracy_criterion
        if tolerable_loss is None:
            tolerable_loss = _known(criterion.budget(), f"{path}: ")
        if calibration is None:
            calibration = prepared.data("quantization", "calibration")
        max_trials = tuning.exit_policy.max_trials if max_trials is None else max_trials
        seed = tuning.random_seed if seed is None else seed
        recipe_or_schemes = prepared.recipe.candidates(LADDER)
    if isinstance(tolerable_loss, LossBudget):
        budget = _known(tolerable_loss)
    else:
        budget = LossBudget(relative=_TOLERABLE_LOSS if tolerable_loss is None else tolerable_loss)
        if criterion is not None:
            budget = replace(budget, min_agreement=criterion.min_agreement)
    count = (_MAX_TRIALS if max_trials is None else max_trials) - 1
    if count < 1:
        raise ValueError(f"max_trials must be 2 or more, got {max_trials}: the last does nothing")
    seed = 0 if seed is None else check_whole("seed", seed)
    if calibration is not None:
        check_batches(calibration)
    if isinstance(calibration, Iterable):
        # Read several times, in the same order.
        calibration = list(calibration)
    match [recipe_or_schemes] if isinstance(recipe_or_schemes, Scheme) else recipe_or_schemes:
        case Mapping() as candidates:
            configs = _frontier(model, candidates, calibration, count, seed)
        case Sequence() as settings:
            configs = _settings(model, settings, calibration, count, seed)
        case _:
            raise TypeError(
                "expected a recipe's path, a sequence of schemes, or patterns to lists of schemes; "
                f"got {brief(recipe_or_schemes)}"
            )
    configs.append(VQConfig(None))
    tolerance = Tolerance.gated(budget.searched.limit, Gate(budget.searched, calibration))
    return TuningConfig(config_set=configs, tolerable_loss=tolerance, max_trials=len(configs))


def _check_recipe(recipe: Recipe, path: Path) -> None:
    for key in ("pruning", "factorization", "recovery"):
        if getattr(recipe, key) is not None:
            raise ValueError(
                f"{path}: INC's autotune neither prunes nor trains: remove {key!r}, or run the "
                "recipe with vq-plugin tune"
            )
    if recipe.host is not None:
        raise ValueError(
            f"{path}: INC's autotune converts models itself: remove 'host', or run the recipe with "
            "vq-plugin tune"
        )
    if recipe.export:
        text = f"{path}: INC's autotune writes no files: 'export' is for vq-plugin tune"
        warnings.warn(text, stacklevel=3)
    if recipe.rest is not None:
        text = f"{path}: INC's autotune does not round what is not compressed: 'rest' is for save"
        warnings.warn(text, stacklevel=3)
    if recipe.tuning.exit_policy.timeout is not None:
        text = f"{path}: INC's autotune knows no timeout; max_trials limits it"
        warnings.warn(text, stacklevel=3)


def _known(budget: LossBudget, where: str = "") -> LossBudget:
    """The budget, if INC knows such; ValueError otherwise."""
    if budget.relative is None or not budget.higher_is_better or budget.confidence:
        remedy = "run 'vq-plugin tune' on the recipe, or pass tolerable_loss= to go by that instead"
        raise ValueError(
            f"{where}the budget is {budget}, and INC's autotune knows relative ones of metrics "
            f"that grow, without a confidence: {remedy if where else 'use vq.tune for others'}"
        )
    return budget


def _settings(
    model: nn.Module,
    settings: Sequence[Schemes | str],
    calibration: Calibration | None,
    count: int,
    seed: int,
) -> list[VQConfig]:
    """One config for every setting, the smallest model first."""
    if calibration is not None:
        raise ValueError(
            "settings of the whole model are fitted by autotune: calibrate them by its run_fn; "
            "calibration= is for a recipe, or for patterns with ladders"
        )
    if not settings:
        raise ValueError("there is nothing to try: give at least one scheme")
    if len(settings) > count:
        raise ValueError(
            f"{len(settings)} settings and one that does nothing are more than max_trials="
            f"{count + 1}: INC would stop before the end, and return one that breaks the budget"
        )
    sized: list[tuple[int, VQConfig]] = []
    for setting in settings:
        chosen = select(model, setting)
        rules = {name: VQConfig(scheme, seed, white_list=None) for name, scheme in chosen.items()}
        saved, config = saved_nbytes(model, chosen), _by_name(rules)
        if saved <= 0:
            warnings.warn(f"{setting} makes the model no smaller: left out", stacklevel=3)
        elif all(config != known for _, known in sized):
            sized.append((saved, config))
    if not sized:
        raise ValueError("no setting makes the model smaller")
    return [config for _, config in sorted(sized, key=lambda pair: -pair[0])]


def _frontier(
    model: nn.Module, candidates: Candidates, calibration: Calibration | None, count: int, seed: int
) -> list[VQConfig]:
    """Points of the tuner's frontier, the smallest model first."""
    space = search_space(model, candidates)
    for name, ladder in space.items():
        for form in ladder:
            # Of one layer, INC makes one.
            as_patterns({name: form})
    layers, _ = observed(layers_of(model, space), model, calibration, seed, Deadline())
    fits = Fits(layers, seed)
    slots = slots_by_name(model, [layer.name for layer in fits.layers])
    largest = stored_nbytes(slot.value for slot in slots.values())
    asked: set[Pair] = set()
    while True:
        found = fits.candidates(asked)
        points = [
            (nbytes, setting)
            for setting in reversed(frontier(found))
            if (nbytes := setting_nbytes(found, setting)) < largest
        ]
        if not points:
            raise ValueError("no setting makes the model smaller")
        chosen = _thinned(points, count)
        new = {pair for setting in chosen for pair in enumerate(setting)} - asked
        if not new:
            break
        # What the fits show may lead to others.
        fits.fit(chosen, Deadline())
        asked |= new
    owners = sharing(model)
    known: dict[int, FittedConfig] = {}
    configs = []
    for setting in chosen:
        rules: dict[str, VQConfig] = {}
        for name, small in fits.chosen(setting).items():
            assert isinstance(small, CodebookWeight)
            if id(small) not in known:
                known[id(small)] = FittedConfig.of(
                    slots[name], small, seed, calibrated=calibration is not None
                )
            for owner in owners[name]:
                rules[owner.name] = known[id(small)]
        configs.append(_by_name(rules))
    return configs


def _thinned(points: list[tuple[int, Setting]], count: int) -> list[Setting]:
    """At most ``count`` of the points, evenly spaced in the logarithm of their bytes."""
    if len(points) <= count:
        return [setting for _, setting in points]
    sizes = [math.log(nbytes) for nbytes, _ in points]
    steps = [sizes[0] + (sizes[-1] - sizes[0]) * step / max(1, count - 1) for step in range(count)]
    nearest = {min(range(len(sizes)), key=lambda i: abs(sizes[i] - at)) for at in steps}
    return [points[index][1] for index in sorted(nearest)]


def _by_name(rules: Mapping[str, VQConfig]) -> VQConfig:
    config = VQConfig(None)
    for name, rule in rules.items():
        config.set_local(name, rule)
    return config


def _digest(slot: Slot) -> str:
    return digest([("weight", slot.value)])
