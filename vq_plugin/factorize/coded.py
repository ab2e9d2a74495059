"""Single layers as products of two coded weights, and a model with such layers in it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize.fit import (
    Directions,
    multiplied,
    second_weight,
    squares_of,
)
from vq_plugin.factorize.layers import FactorizedLayer
from vq_plugin.factorize.place import empty_layer, place, split_for
from vq_plugin.factors import Factored
from vq_plugin.factors.factors import Factor
from vq_plugin.factors.splits import Split
from vq_plugin.fit.output.moments import Moments, Samples
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.nn import Slot
from vq_plugin.nn.slots import shown
from vq_plugin.replace import assemble
from vq_plugin.select import slots_by_name
from vq_plugin.slot_fit import fit_named
from vq_plugin.ties import sharing


@dataclass(frozen=True)
class FactoredWeight:
    """Two coded weights whose product stands for one.

    Attributes:
        scheme: What was asked for.
        factor: What became of it: with a rank.
        split: How the weight is cut.
        first: Weight of the first layer, which has no bias.
        second: That of the second, whose bias takes up the mean of all that is lost.
    """

    scheme: Factored
    factor: Factor
    split: Split
    first: CodebookWeight
    second: CodebookWeight

    def decode(self) -> Tensor:
        """The weight that the two stand for, in its own dtype."""
        return self.split.weight(self.first.decode(), self.second.decode())


def checked_split(
    slot: Slot, factored: Factored, parts: Mapping[nn.Module, str] | None = None
) -> Split:
    """How a setting cuts the weight of a slot; ``ValueError``, which names it, if it cannot.

    ``parts`` are those that products are made of already, of the slot's model.
    """
    if parts and slot.module in parts:
        raise ValueError(f"layer {shown(parts[slot.module])} is factorized already")
    split = split_for(slot, factored.factor)
    if isinstance(split, str):
        raise ValueError(f"layer {slot.shown}: {factored}: {split}")
    rate = getattr(factored.factor, "rate", None)
    if rate is not None and rate * split.size > slot.weight.numel():
        raise ValueError(
            f"layer {slot.shown}: {factored.factor} asks for less than rank 1, {split.size:,} "
            "weights: take a lower rate, a scheme alone, or None"
        )
    return split


def fit_factored(
    name: str,
    weight: Tensor,
    factored: Factored,
    split: Split,
    found: Directions,
    *,
    moments: Moments | None = None,
    seed: int = 0,
) -> FactoredWeight:
    """Fits both weights of a layer.

    The first goes by the inputs of the layer, and by what the second makes of its errors; the
    second is the least squares fit of the layer's outputs by what the first, as coded, gives.

    Args:
        name: Of the layer's slot.
        weight: The layer's.
        factored: What to do.
        split: How ``factored`` cuts the weight.
        found: Of :func:`vq_plugin.factorize.fit.directions`.
        moments: Of the layer's inputs.
        seed: Of the fits.
    """
    rank = rank_for(factored, split, found)
    with worker_pool(), cpu_by_default():
        shares, (whole,) = multiplied([split], [weight], found.left[:, :, :rank])
        first_weight, second = split.weights(shares, whole)
        before = None if moments is None else _of_first(split, moments, second)
        first = fit_named(name, first_weight.to(weight), factored.scheme, moments=before, seed=seed)
        first = replace(first, bias_shift=None)
        filters = split.filters(first.decode().double().cpu())
        second = second_weight([split], [weight], [moments], [first.decode()]).reshape(second.shape)
        after = None if moments is None else _of_second(split, moments, filters, second.shape)
        last = fit_named(name, second.to(weight), factored.scheme, moments=after, seed=seed)
        small = FactoredWeight(factored, factored.factor.resolved(rank), split, first, last)
        shift = None
        if moments is not None:
            shift = moments.bias_shift(small.decode() - weight.detach())
        return replace(small, second=replace(last, bias_shift=shift))


def rank_for(factored: Factored, split: Split, found: Directions) -> int:
    """The rank that a factor takes of a weight, at least 1."""
    return min(factored.factor.rank_for(split, found.singular.tolist()), split.most)


def _of_first(split: Split, moments: Moments, second: Tensor) -> Moments | None:
    """What meets the first weight; its outputs count by what the second makes of them."""
    if not split.columns_are_inputs:
        # What meets it recurs at several places, or is of one channel at a time.
        return None
    hidden = second.reshape(split.groups, split.outputs, -1).square()
    if moments.outputs is not None:
        hidden = hidden * moments.outputs.cpu().reshape(split.groups, split.outputs, 1)
    outputs = hidden.sum(1)
    squares = squares_of(split, moments).float().unsqueeze(1).expand(-1, outputs.shape[1], -1)
    importance = squares.reshape(-1, split.inputs, *split.kernel)
    return Moments(importance, moments.second, moments.mean, outputs.flatten())


def _of_second(split: Split, moments: Moments, filters: Tensor, shape: torch.Size) -> Moments:
    """What meets the second weight: what the first layer makes of the layer's inputs."""
    mean = None
    if moments.mean is not None:
        mean = (filters @ moments.mean.cpu().double().unsqueeze(2)).squeeze(2).float()
    second: Tensor | Samples | None = None
    if isinstance(moments.second, Samples):
        rows = moments.second.rows.cpu().double() @ filters.mT
        second = Samples(rows.float())
        squares = rows.square().mean(1)
        if rows.shape[1] >= rows.shape[2]:
            second = (rows.mT @ rows / rows.shape[1]).float()
    elif moments.second is not None:
        pairs = filters @ moments.second.cpu().double() @ filters.mT
        second, squares = pairs.float(), pairs.diagonal(0, 1, 2)
    else:
        squares = filters.square() @ squares_of(split, moments).unsqueeze(2)
        squares = squares.squeeze(2)
    if not bool((squares > 0).any()):
        # Where nothing is passed on all count alike, as in calibration.
        squares = torch.ones_like(squares)
    by_weight = squares.float().unsqueeze(1).expand(-1, split.outputs, -1)
    return Moments(by_weight.reshape(shape), second, mean, moments.outputs)


def assemble_factored(
    model: nn.Module, weights: Mapping[str, CodebookWeight | FactoredWeight]
) -> nn.Module:
    """As :func:`vq_plugin.replace.assemble`; some weights may be products of two.

    Layers that share a weight share its factors.
    """
    products = {name: each for name, each in weights.items() if isinstance(each, FactoredWeight)}
    single = {name: each for name, each in weights.items() if isinstance(each, CodebookWeight)}
    if not products:
        return assemble(model, single)
    slots, owners = slots_by_name(model, products), sharing(model)
    layers: dict[Slot, FactorizedLayer] = {}
    for name, each in products.items():
        first = layers[slots[name]] = empty_layer(slots[name], each.factor, each.split)
        for other in owners[name]:
            if other not in layers:
                split = checked_split(other, each.scheme)
                layers[other] = empty_layer(other, each.factor, split)
                layers[other].share(first, first.parts)
    parts: dict[str, CodebookWeight] = {}
    for name, weight in weights.items():
        if isinstance(weight, CodebookWeight):
            parts[name] = weight
            continue
        place_of = slots[name].module_names[0]
        for part, own in zip(layers[slots[name]].parts, (weight.first, weight.second), strict=True):
            parts[f"{place_of}.{part}" if place_of else part] = own
    return assemble(place(model, layers, {}), parts)
