"""A whole model: every chosen weight in codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from typing import get_args

import torch
from torch import Tensor, nn

from vq_plugin.arguments import brief, check_flag, check_whole
from vq_plugin.calibration import Calibration, input_moments
from vq_plugin.choice import choose
from vq_plugin.codebook import CodebookWeight
from vq_plugin.factorize.coded import (
    FactoredWeight,
    assemble_factored,
    checked_split,
    fit_factored,
)
from vq_plugin.factorize.fit import directions
from vq_plugin.factorize.layers import parts_of_products
from vq_plugin.factors import Factored
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.folding import fold_batch_norms
from vq_plugin.left_float import left_float, share_of_file
from vq_plugin.nn import CodebookLayer, Memory, coded_weights
from vq_plugin.nn.slots import shown
from vq_plugin.ops import Precision
from vq_plugin.progress import progress
from vq_plugin.schemes import Preset
from vq_plugin.select import (
    Choices,
    Form,
    asks_for_all,
    check_model,
    leaves,
    select_choices,
    slots_by_name,
)
from vq_plugin.sensitivity import felt_moments, sensitivities
from vq_plugin.slot_fit import check_slot, fit_named
from vq_plugin.ties import tied_weights

# A row is lost whose codes are off by so much of its size; so many lost rows are worth a word.
# Larger weights have no rows of a few numbers, and take long.
_LOST = 0.75
_MANY = 0.2
_MOST_WEIGHTS = 1 << 21


def compress(
    model: nn.Module,
    schemes: Choices,
    calibration: Calibration | None = None,
    seed: int = 0,
    *,
    fold: bool = False,
) -> nn.Module:
    """Puts codes in the place of the chosen weights of a model.

    Linear, convolutions and Embedding become codebook layers. Other modules (recurrent layers,
    attention, transposed convolutions, whatever :func:`vq_plugin.register_slot` knows) stay what
    they are and hold their weights as codes. Weights that are shared get one set of codes and
    codebooks and go on being shared.

    Args:
        model: Float model; it is not changed. A bare layer works too.
        schemes: One scheme for every weight that has a slot, or patterns to schemes (exact
            name > ``"re:…"`` > class > ``"*"``; ``None`` leaves a weight), see
            :func:`vq_plugin.select.select`. Where a :class:`vq_plugin.Preset` or its name stands,
            such as ``"auto"``, each of its weights gets a scheme of its own.
        calibration: Unlabelled data that the fits may look at: an iterable of input batches (a
            tuple or list is the model's positional arguments, a mapping its keyword arguments),
            or a callable that runs the model it is given. What is
            lowered is then the error of each layer's output, and biases take up its mean.
            ``None`` lowers the error of the weights. Weights whose inputs are not known are named
            in a warning, and fitted without.
        seed: Seed of the fits.
        fold: Whether batch norms are folded first, as :func:`vq_plugin.fold_batch_norms` does.

    Returns:
        A new model, in the training mode of ``model``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a weight cannot be compressed (the message names
            it and says why), modules that share a weight would get different schemes, or batch
            norms cannot be folded.

    Warns:
        UserWarning: If all weights are asked for and one of more than 1 % of the model has no slot,
            calibration gave a weight no samples, or codes that were fitted without calibration
            are far off.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> small = vq.compress(model, {"0": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)})
        >>> type(small[0]).__name__, type(small[2]).__name__
        ('CodebookLinear', 'CodebookLinear')
    """
    if check_flag("fold", fold):
        check_model(model)
        model = fold_batch_norms(model)
    weights = _fit(model, schemes, calibration, seed)
    small = assemble_factored(model, weights)
    if asks_for_all(schemes):
        _warn_of_left(small, schemes)
    return small


def choose_schemes(
    model: nn.Module, schemes: Choices = "auto", calibration: Calibration | None = None,
    seed: int = 0,
) -> dict[str, Form]:  # fmt: skip
    """The schemes that :func:`compress` would use, weight by weight.

    For hosts, recipes and searches, which take a scheme for each layer and no presets.

    Args:
        model: Float model; it is not changed.
        schemes: A preset's name, a :class:`vq_plugin.Preset`, or what else :func:`compress` takes.
        calibration: As for :func:`compress`.
        seed: Seed of the fits.

    Returns:
        Scheme of every chosen weight, by the name of its slot, in the order of the model.

    Raises:
        TypeError, ValueError: As :func:`compress`.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> sorted(vq.choose_schemes(model, "small"))
        ['0', '2']
    """
    weights = _fit(model, schemes, calibration, seed)
    chosen = select_choices(model, schemes)
    ties = tied_weights(model, chosen)
    return {name: weights[ties.get(name, name)].scheme for name in chosen}


def _fit(
    model: nn.Module, schemes: Choices, calibration: Calibration | None, seed: int
) -> dict[str, CodebookWeight | FactoredWeight]:
    """The weights of every scheme and preset, by the names of their slots, in the model's order."""
    seed = check_whole("seed", seed)
    chosen = select_choices(model, schemes)
    slots = slots_by_name(model, chosen)
    ties = tied_weights(model, chosen)
    for slot in slots.values():
        check_slot(slot)
    parts = parts_of_products(model)
    splits = {
        name: checked_split(slots[name], each, parts)
        for name, each in chosen.items()
        if isinstance(each, Factored)
    }
    moments: dict[str, Moments] = {}
    if calibration is not None:
        if isinstance(calibration, Iterator):
            # It may be looked at twice.
            calibration = list(calibration)
        moments = input_moments(model, slots.values(), calibration)
        known = {
            ties.get(name, name)
            for name, slot in slots.items()
            if slot.observable or name in moments
        }
        unknown = [
            name or slots[name].shown for name in chosen if ties.get(name, name) not in known
        ]
        if unknown:
            warnings.warn(
                f"calibration does not know the inputs of {', '.join(unknown)}: fitted by their "
                "weights alone; vq.register_slot(..., inputs=) tells them",
                stacklevel=3,
            )
        for name, first in ties.items():
            if name in moments and slots[name].view == slots[first].view:
                moments.setdefault(first, moments[name])
    weights: dict[str, CodebookWeight | FactoredWeight] = {}
    own = {name: each for name, each in chosen.items() if name not in ties}
    for preset in dict.fromkeys(each for each in own.values() if isinstance(each, Preset)):
        its = {name: slots[name] for name, each in own.items() if each == preset}
        weights |= choose(model, its, preset, moments, calibration, seed)
    plain = {name: each for name, each in own.items() if not isinstance(each, Preset)}
    feeling = [slots[name] for name, each in plain.items() if each.feels]
    if feeling and calibration is not None:
        felt = sensitivities(model, feeling, calibration, moments, seed=seed)
        moments |= felt_moments(feeling, moments, felt)
    with worker_pool():
        for name, scheme in progress(plain.items(), desc="compress", unit="layer", leave=False):
            weight, seen = slots[name].weight.detach(), moments.get(name)
            if isinstance(scheme, Factored):
                split = splits[name]
                found = directions([split], [weight], [seen])
                weights[name] = fit_factored(
                    name, weight, scheme, split, found, moments=seen, seed=seed
                )
            else:
                weights[name] = fit_named(name, weight, scheme, moments=seen, seed=seed)
    if calibration is None:
        _warn_of_far_off({name: (slots[name].weight, weights[name]) for name in plain})
    return {name: weights[name] for name in own}


def _warn_of_far_off(
    weights: Mapping[str, tuple[Tensor, CodebookWeight | FactoredWeight]],
) -> None:
    lost = {
        name: share
        for name, (weight, small) in weights.items()
        if weight.numel() <= _MOST_WEIGHTS
        and (share := _lost_rows(weight.detach(), small)) >= _MANY
    }
    if lost:
        names = sorted(lost, key=lost.__getitem__, reverse=True)
        worst = ", ".join(f"{shown(name)} ({100 * lost[name]:.0f} %)" for name in names[:5])
        more = f" and {len(names) - 5} more" * (len(names) > 5)
        warnings.warn(
            f"codes are far off for many rows of {worst}{more}: give calibration=, a few batches "
            "of inputs, or choose a scheme with more centers or scale='row'",
            stacklevel=4,
        )


def _lost_rows(weight: Tensor, small: CodebookWeight | FactoredWeight) -> float:
    """The share of the rows that are lost, of those that are not zero."""
    rows = weight.flatten(1).float()
    change = small.decode().flatten(1).float() - rows
    size = torch.linalg.vecdot(rows, rows)
    lost = torch.linalg.vecdot(change, change) > _LOST**2 * size
    if not bool(lost.any()):
        return 0.0
    live = size > 0
    return int((lost & live).sum()) / max(1, int(live.sum()))


def _warn_of_left(small: nn.Module, schemes: Choices) -> None:
    left = [
        weight
        for weight in left_float(small)
        if not (weight.reachable or leaves(schemes, weight.name))
    ]
    if left:
        lines = "".join(f"\n  {each.name}: {each.nbytes:,} bytes, {each.reason}" for each in left)
        share = share_of_file(small, left)
        most = f" (together {100 * share:.0f} % of the file)" * (share > 0.5)
        warnings.warn(f"weights above 1 % of the model stayed in float{most}:{lines}", stacklevel=3)


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Sets how the codebook layers of a model compute, in place; files do not keep it.

    Args:
        model: A model with codebook layers.
        precision: ``"exact"``, ``"high"`` or ``"fast"``: see :func:`vq_plugin.ops.codebook_linear`.

    Raises:
        ValueError: If the model has no codebook layer, or ``precision`` is another word.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 64), vq.PQ(k=16, dim=4))
        >>> vq.set_precision(small, "fast")
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be 'exact', 'high' or 'fast', got {brief(precision)}")
    check_model(model)
    layers = [module for module in model.modules() if isinstance(module, CodebookLayer)]
    if not layers:
        raise ValueError("the model has no codebook layer; compress it first")
    for layer in layers:
        layer.precision = precision


def set_memory(model: nn.Module, memory: Memory) -> None:
    """Sets what is held between forward passes, in place; files do not keep it.

    It is about weights that no kernel runs on their codes: those of most convolutions, of small
    recurrent layers, of attention.

    Args:
        model: A model with coded weights.
        memory: ``"weight"``, the default, decodes such a weight once and keeps it: as fast as the
            float model, and as large. ``"codes"`` decodes it in every pass and drops it: the memory
            of the codes, and the time of decoding.

    Raises:
        ValueError: If the model has no coded weight, or ``memory`` is another word.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Conv2d(16, 16, 3), vq.KM(k=16))
        >>> vq.set_memory(small, "codes")
    """
    if memory not in get_args(Memory):
        raise ValueError(f"memory must be 'weight' or 'codes', got {brief(memory)}")
    check_model(model)
    holders = coded_weights(model).values()
    if not holders:
        raise ValueError("the model has no coded weight; compress it first")
    for holder in holders:
        holder.set_memory(memory)
