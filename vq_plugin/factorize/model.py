"""A whole model: chosen layers as products of smaller ones."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

from torch import Tensor, nn

from vq_plugin.arguments import brief
from vq_plugin.calibration import Calibration, input_moments
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize.fit import directions, knows_pairs, multiplied, second_weight
from vq_plugin.factorize.layers import FactorizedLayer, parts_of_products
from vq_plugin.factorize.place import empty_layer, place, split_for
from vq_plugin.factorize.stayed import warn_of_stayed
from vq_plugin.factors.factors import SVD, Basis, Factor
from vq_plugin.factors.splits import Split
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn import Slot
from vq_plugin.nn.slots import shown
from vq_plugin.progress import progress
from vq_plugin.select import Pattern, check_model, check_pattern_type, match, slots_by_name
from vq_plugin.slot_fit import check_not_lazy, check_slot
from vq_plugin.ties import tied_weights

#: One factor for every layer, or patterns to factors, as schemes are chosen.
Factors: TypeAlias = Factor | Mapping[Pattern, Factor | None]


def factorize(
    model: nn.Module, factors: Factors, calibration: Calibration | None = None
) -> nn.Module:
    """Makes products of smaller layers of the chosen layers of a float model.

    What comes out is a float model of ordinary layers: a layer ``fc`` becomes one with two inside,
    ``fc.first`` and ``fc.second`` (:class:`SVD`) or ``fc.basis`` and ``fc.coefficients``
    (:class:`Basis`). :func:`vq_plugin.compress`, ``prune``, ``finetune``, ``tune`` and hosts take
    these as any other. Files say what was factorized: :func:`vq_plugin.load` does it again to a
    fresh model.

    Args:
        model: Float model; it is not changed. A bare layer works too.
        factors: One factor for every Linear and convolution, or patterns to factors (exact name >
            ``"re:…"`` > class > ``"*"``; ``None`` leaves a layer), as in
            :func:`vq_plugin.compress`.
        calibration: Unlabelled data, as for :func:`vq_plugin.compress`. What is kept is then the
            layers' outputs, not their weights: the weight is whitened by the second moments of its
            inputs, and biases take up the mean of the error.

    Returns:
        A new float model, in the training mode of ``model``. Layers that share a weight share its
        factors.

    Raises:
        TypeError: If a pattern or a factor is of the wrong type.
        ValueError: If a pattern matches nothing, a rank is above that of a layer's matrix, layers
            that are to share coefficients are of unlike form, or a layer that is named
            cannot be factorized (the message names it and says why).

    Warns:
        UserWarning: If layers that a pattern for many chose are left as they are: of a kind
            that has no such factors, or with more weights if they were factorized.

    Example:
        >>> import torch, vq_plugin as vq
        >>> model = nn.Sequential(nn.Conv2d(8, 64, 3), nn.Flatten(), nn.Linear(2304, 100))
        >>> small = vq.factorize(model, {"2": vq.SVD(rate=4), nn.Conv2d: vq.Basis(d=5)})
        >>> small[2].first, small[0].basis.weight.shape
        (Linear(in_features=2304, out_features=23, bias=False), torch.Size([5, 1, 3, 3]))
        >>> small(torch.zeros(1, 8, 8, 8)).shape
        torch.Size([1, 100])
    """
    check_model(model)
    patterns = _as_patterns(factors)
    left: dict[str, str] = {}
    chosen = _chosen(model, patterns, left)
    ties = tied_weights(model, {name: each.factor for name, each in chosen.items()})
    own = {name: each for name, each in chosen.items() if name not in ties}
    moments = {} if calibration is None else _moments(model, chosen, ties, calibration)
    layers: dict[Slot, FactorizedLayer] = {}
    with cpu_by_default():
        for group in progress(_groups(own), desc="factorize", unit="layer", leave=False):
            known = [moments.get(each.slot.name) for each in group]
            made, reason = _factorized(group, known)
            layers |= made
            left |= {each.slot.name: reason for each in group if reason is not None}
        for name, first in ties.items():
            source = layers.get(own[first].slot)
            if source is None:
                left[name] = left[first]
                continue
            slot = chosen[name].slot
            layers[slot] = empty_layer(slot, source.factor, chosen[name].split)
            layers[slot].share(source, source.parts)
    warn_of_stayed(left, stacklevel=2)
    return place(model, layers, _shifts(layers, moments))


@dataclass(frozen=True)
class _Chosen:
    """A layer that is to be factorized, and the pattern that says so."""

    slot: Slot
    pattern: Pattern
    factor: Factor
    split: Split


def _as_patterns(factors: object) -> Mapping[Pattern, Factor | None]:
    if isinstance(factors, SVD | Basis):
        return {"*": factors}
    if not isinstance(factors, Mapping):
        raise TypeError(
            f"factors must be a factor or a mapping of patterns to them, got {brief(factors)}"
        )
    for pattern, factor in factors.items():
        check_pattern_type(pattern)
        if not (factor is None or isinstance(factor, SVD | Basis)):
            raise TypeError(
                f"pattern {pattern!r}: expected a factor such as vq.SVD(rate=4) or None, got "
                f"{brief(factor)}"
            )
    return factors


def _chosen(
    model: nn.Module, patterns: Mapping[Pattern, Factor | None], left: dict[str, str]
) -> dict[str, _Chosen]:
    """The layers by name; those of a kind that has no such factors are ``left``."""
    leaving = {pattern for pattern, factor in patterns.items() if factor is None}
    owners = match(model, patterns, leaving)
    slots = slots_by_name(model, owners)
    parts = parts_of_products(model)
    chosen: dict[str, _Chosen] = {}
    for name, pattern in owners.items():
        slot, factor = slots[name], patterns[pattern]
        if factor is None:
            continue
        if slot.module in parts:
            raise ValueError(f"layer {shown(parts[slot.module])} is factorized already")
        check_not_lazy(slot)
        split = split_for(slot, factor)
        if not isinstance(split, str):
            check_slot(slot)
            chosen[name] = _Chosen(slot, pattern, factor, split)
        elif pattern in (*slot.names, *slot.module_names):
            raise ValueError(f"layer {slot.shown}: {split}")
        else:
            left[name] = split
    return chosen


def _groups(chosen: Mapping[str, _Chosen]) -> list[list[_Chosen]]:
    """Layers that are factorized together: those of one pattern that share, others alone.

    ``ValueError`` for layers of unlike form that are to share.
    """
    groups: dict[object, list[_Chosen]] = {}
    for name, each in chosen.items():
        shared = isinstance(each.factor, Basis) and each.factor.shared
        groups.setdefault(("shared", each.pattern) if shared else name, []).append(each)
    for first, *others in groups.values():
        for other in others:
            one, two = first.split, other.split
            if (one.shape, one.groups) != (two.shape, two.groups):
                raise ValueError(
                    f"layers {first.slot.shown} and {other.slot.shown} cannot share coefficients: "
                    f"their weights are {one.shape} and {two.shape}, in {one.groups} and "
                    f"{two.groups} groups; choose them by patterns of their own"
                )
    return list(groups.values())


def _moments(
    model: nn.Module,
    chosen: Mapping[str, _Chosen],
    ties: Mapping[str, str],
    calibration: Calibration,
) -> dict[str, Moments]:
    """What is known of the inputs of the layers; a warning says of which nothing is."""
    moments = input_moments(model, [each.slot for each in chosen.values()], calibration)
    for name, first in ties.items():
        if name in moments:
            moments.setdefault(first, moments[name])
    unknown = [shown(name) for name in chosen if ties.get(name, name) not in moments]
    if unknown:
        warnings.warn(
            f"calibration does not know the inputs of {', '.join(unknown)}: factorized by their "
            "weights alone",
            stacklevel=3,
        )
    return moments


def _factorized(
    group: Sequence[_Chosen], known: Sequence[Moments | None]
) -> tuple[dict[Slot, FactorizedLayer], str | None]:
    """Layers in the places of those of a group, or why they stay."""
    factor, split = group[0].factor, group[0].split
    splits = [each.split for each in group]
    weights = [each.slot.weight.detach() for each in group]
    found = directions(splits, weights, known)
    rank = factor.rank_for(split, found.singular.tolist())
    if rank == 0:
        return {}, f"{factor} asks for less than rank 1, {split.size:,} weights"
    # What is on the left is there once.
    size = rank * (split.count * (split.rows + len(group) * split.columns))
    before = sum(weight.numel() for weight in weights)
    if size > before:
        return {}, f"{factor.resolved(rank)} has {size:,} weights in the place of {before:,}"
    left, rights = multiplied(splits, weights, found.left[:, :, :rank])
    layers = [empty_layer(each.slot, factor.resolved(rank), each.split) for each in group]
    for layer, right in zip(layers, rights, strict=True):
        layer.multiply(left, right)
        if layer is not layers[0]:
            layer.share(layers[0], layer.parts[1:])
    moments = [each for each in known if each is not None and knows_pairs(each)]
    if len(moments) == len(group) and not split.columns_are_inputs:
        firsts = [layer.weights[0].detach() for layer in layers]
        layers[0].mix(second_weight(splits, weights, moments, firsts))
    return {each.slot: layer for each, layer in zip(group, layers, strict=True)}, None


def _shifts(
    layers: Mapping[Slot, FactorizedLayer], moments: Mapping[str, Moments]
) -> dict[Slot, Tensor]:
    """What biases take up of the mean of the outputs' errors."""
    shifts = {}
    for slot, layer in layers.items():
        if slot.name in moments:
            change = layer.weight.detach() - slot.weight.detach()
            shift = moments[slot.name].bias_shift(change)
            if shift is not None:
                shifts[slot] = shift
    return shifts
