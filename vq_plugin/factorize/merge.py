"""Similar neurons of a layer as one: a smaller dense model."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

import torch
from torch import Tensor, nn

from vq_plugin.arguments import as_number, check_whole, is_number
from vq_plugin.calibration import Calibration, input_moments
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize.chains import Chain, NoChainError, find_chain, traced
from vq_plugin.factorize.narrow import add_up, check_own, keep_outputs, settle_products
from vq_plugin.factorize.neurons import (
    by_inputs,
    by_weights,
    entering,
    moments_of_neurons,
    outgoing,
)
from vq_plugin.factorize.stayed import warn_of_stayed
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn.recomputed import current
from vq_plugin.progress import progress
from vq_plugin.replace import assemble, shared_parameters
from vq_plugin.select import Pattern, check_model, check_pattern_type, match, slots_by_name
from vq_plugin.slot_fit import check_slot

#: Share of a layer's neurons that stay, or how many; one for all layers, or by patterns.
Keep: TypeAlias = float | int | Mapping[Pattern, float | int | None]


def merge_neurons(
    model: nn.Module, keep: Keep, calibration: Calibration | None = None, seed: int = 0
) -> nn.Module:
    """Merges similar neurons, or channels, of the chosen layers: a smaller float model.

    Neurons of a layer are clustered by their weights (Srinivas & Babu 2015, arXiv 1507.06149), with
    a batch norm behind it taken into account; one of each cluster stays, and the layers that take
    their outputs add up the weights of the others. With calibration those stay from which the
    outputs of the next layers are best told, and weights are added up in the shares that fit these
    outputs best (least squares, as ThiNet does, Luo et al. 2017, arXiv 1707.06342); biases take up
    the mean.

    Between a layer and those that take its outputs there may be batch norm, activations, dropout,
    pooling and flattening, as ``torch.fx`` traces them.

    Args:
        model: Float model that ``torch.fx`` can trace; it is not changed.
        keep: Share of the neurons that stay, above 0 and below 1, or their number, a whole one; for
            every Linear and convolution that has such a chain behind it, or patterns to either,
            as in :func:`vq_plugin.compress`.
        calibration: Unlabelled data, as for :func:`vq_plugin.compress`.
        seed: Of the clusters.

    Returns:
        A new model, in the training mode of ``model``, whose layers are smaller. Files of it are
        loaded into a whole model, and rates count against that.

    Raises:
        TypeError: If a pattern or a number is of the wrong type.
        ValueError: If a pattern matches nothing, ``keep`` is out of range, the model cannot be
            traced, or the outputs of a layer that is named go where neurons cannot be merged (the
            message names both).

    Warns:
        UserWarning: If layers that a pattern for many chose stay as they are, with the reason.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(20, 64), nn.ReLU(), nn.Linear(64, 10))
        >>> small = vq.merge_neurons(model, {"0": 0.5})
        >>> small
        Sequential(
          (0): Linear(in_features=20, out_features=32, bias=True)
          (1): ReLU()
          (2): Linear(in_features=32, out_features=10, bias=True)
        )
    """
    check_model(model)
    seed = check_whole("seed", seed)
    patterns = _as_patterns(keep)
    chains, counts = _chains(model, patterns)
    moments: dict[str, Moments] = {}
    if calibration is not None:
        names = dict.fromkeys(name for chain in chains.values() for name in chain.consumers)
        moments = input_moments(model, slots_by_name(model, names).values(), calibration)
    modules = dict(model.named_modules())
    merged: dict[str, tuple[Tensor, Tensor]] = {}
    with cpu_by_default():
        for name in progress(chains, desc="merge", unit="layer", leave=False):
            merged[name] = _merged(name, chains[name], counts[name], modules, moments, seed)
    small = assemble(model, {})
    modules = dict(small.named_modules())
    shared = shared_parameters(small)
    # What is made in inference mode is never trained.
    with torch.inference_mode(False), torch.no_grad():
        for name, chain in chains.items():
            stay, mixes = merged[name]
            keep_outputs(modules[name], stay)
            if chain.norm is not None:
                keep_outputs(modules[chain.norm], stay)
            for consumer in chain.consumers:
                layer = modules[consumer]
                free = id(layer._parameters.get("bias")) not in shared
                add_up(layer, stay, mixes, moments.get(consumer) if free else None)
    settle_products(small)
    return small


def _as_patterns(keep: object) -> Mapping[Pattern, float | int | None]:
    patterns: Mapping[Pattern, float | int | None]
    patterns = keep if isinstance(keep, Mapping) else {"*": keep}  # type: ignore[dict-item]
    patterns = {pattern: as_number(value) for pattern, value in patterns.items()}
    for pattern, value in patterns.items():
        check_pattern_type(pattern)
        if value is not None and not is_number(value):
            raise TypeError(f"pattern {pattern!r}: keep is a share or a number, got {value!r}")
        if value is not None and not (value >= 1 if isinstance(value, int) else 0 < value < 1):
            raise ValueError(
                f"pattern {pattern!r}: keep is a share above 0 and below 1, or a whole number of "
                f"at least 1, got {value!r}"
            )
    return patterns


def _chains(
    model: nn.Module, patterns: Mapping[Pattern, float | int | None]
) -> tuple[dict[str, Chain], dict[str, int]]:
    """The chosen layers' chains, and how many neurons stay; a warning lists those without."""
    owners = match(model, patterns, [each for each, value in patterns.items() if value is None])
    slots = slots_by_name(model, owners)
    graph, modules = traced(model), dict(model.named_modules())
    shared = shared_parameters(model)
    chains: dict[str, Chain] = {}
    counts: dict[str, int] = {}
    left: dict[str, str] = {}
    for name, pattern in owners.items():
        slot, keep = slots[name], patterns[pattern]
        if keep is None:
            continue
        try:
            if slot.host is not slot.module or name not in modules:
                raise NoChainError("its weight is one of several, or used by another module")
            chain = find_chain(graph, modules, name)
            check_own(chain, name, modules, shared)
        except NoChainError as error:
            if pattern in (*slot.names, *slot.module_names):
                raise ValueError(f"layer {slot.shown}: {error}") from None
            left[name] = str(error)
            continue
        check_slot(slot)
        if isinstance(keep, int) and keep > chain.neurons:
            raise ValueError(f"layer {slot.shown} has {chain.neurons} neurons, fewer than {keep}")
        chains[name] = chain
        counts[name] = keep if isinstance(keep, int) else max(1, round(keep * chain.neurons))
    warn_of_stayed(left, stacklevel=3)
    return chains, counts


def _merged(
    name: str,
    chain: Chain,
    count: int,
    modules: Mapping[str, nn.Module],
    moments: Mapping[str, Moments],
    seed: int,
) -> tuple[Tensor, Tensor]:
    """The neurons that stay, ``(count,)``, and all as mixes of them, ``(neurons, count)``."""
    weights = [current(modules[consumer], "weight") for consumer in chain.consumers]
    leaves = sum(outgoing(weight, chain.neurons) for weight in weights)
    assert isinstance(leaves, Tensor)
    known = [moments[consumer] for consumer in chain.consumers if consumer in moments]
    pairs = [moments_of_neurons(each, chain.neurons) for each in known]
    seen = [each for each in pairs if each is not None]
    if len(seen) == len(weights):
        return by_inputs(torch.stack(seen).mean(0), leaves, count)
    norm = None if chain.norm is None else modules[chain.norm]
    return by_weights(entering(modules[name], norm), leaves.diagonal(), count, seed)
