"""Which neurons stay, and what the others are made of."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from vq_plugin.factorize.fit import knows_pairs, pairs_of
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.fit.vector import fit_vector
from vq_plugin.nn.recomputed import current

_NOTHING = 1e-12


def outgoing(weight: Tensor, neurons: int) -> Tensor:
    """Products of what leaves each pair of neurons, float64 ``(neurons, neurons)``.

    ``weight`` is of a layer that takes their outputs, ``(out, neurons · places, ...)``.
    """
    with worker_pool():
        by_neuron = weight.detach().cpu().double().reshape(len(weight), neurons, -1)
        columns = by_neuron.transpose(0, 1).flatten(1)
        return columns @ columns.T


def entering(layer: nn.Module, norm: nn.Module | None) -> Tensor:
    """What enters each neuron, batch norm and bias included: float64 ``(neurons, inputs + 1)``."""
    weight = current(layer, "weight").detach().cpu().double().flatten(1)
    bias = getattr(layer, "bias", None)
    shift = weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()
    if isinstance(norm, _BatchNorm):
        mean, var = norm.running_mean, norm.running_var
        assert mean is not None
        assert var is not None
        scale = (var.cpu().double() + norm.eps).rsqrt()
        if norm.affine:
            scale = scale * norm.weight.detach().cpu().double()
        shift = (shift - mean.cpu().double()) * scale
        if norm.affine:
            shift = shift + norm.bias.detach().cpu().double()
        weight = weight * scale.unsqueeze(1)
    return torch.cat([weight, shift.unsqueeze(1)], 1)


def moments_of_neurons(moments: Moments, neurons: int) -> Tensor | None:
    """Second moments of the outputs of neurons, the mean over places; ``None`` if not known."""
    if not knows_pairs(moments):
        return None
    with worker_pool():
        pairs = pairs_of(moments)[0]
        places = len(pairs) // neurons
        by_place = pairs.reshape(neurons, places, neurons, places).diagonal(0, 1, 3)
        return by_place.mean(-1)


def by_weights(rows: Tensor, leaves: Tensor, count: int, seed: int) -> tuple[Tensor, Tensor]:
    """Clusters of neurons with similar weights, each as one of them.

    Args:
        rows: What enters every neuron, ``(neurons, inputs)``.
        leaves: Sum of squares of what leaves it, ``(neurons,)``: how much it counts.
        count: How many stay.
        seed: Of the clusters.

    Returns:
        The neurons that stay, in their order, and all as one of them, float64
        ``(neurons, count)``.
    """
    neurons = len(rows)
    rows, leaves = rows.double(), leaves.double()
    mass = (leaves / leaves.max().clamp_min(_NOTHING)).clamp_min(1e-6)
    scale = rows.abs().max().clamp_min(_NOTHING)
    points = (rows / scale).float().unsqueeze(0)
    with worker_pool():
        weights = mass.float().reshape(1, -1, 1).expand_as(points).contiguous()
        centers, codes = fit_vector(Batch(points, weights), count, seed)
        far = (points[0] - centers[0][codes[0].long()]).square().sum(1)
        stay = []
        for cluster in range(centers.shape[1]):
            members = (codes[0] == cluster).nonzero().flatten()
            if len(members):
                # What is nearest to the mean, of equally near ones that which counts most.
                nearest = min(members.tolist(), key=lambda at: (far[at].item(), -mass[at].item()))
                stay.append(nearest)
        others = [at for at in far.argsort(descending=True, stable=True).tolist() if at not in stay]
        kept = torch.tensor(sorted(stay + others[: count - len(stay)]))
        distances = torch.cdist(rows, rows[kept])
        mixes = torch.zeros(neurons, count, dtype=torch.float64)
        mixes[torch.arange(neurons), distances.argmin(1)] = 1
        # Of two that are equal the first would be taken.
        mixes[kept] = torch.eye(count, dtype=torch.float64)
        return kept, mixes


def by_inputs(pairs: Tensor, leaves: Tensor, count: int) -> tuple[Tensor, Tensor]:
    """The neurons from which what leaves all is best told, and the others as told by them.

    One after the other is taken which lowers most of ``tr(leaves · rest)``, where ``rest`` are the
    second moments of what those so far do not tell: a pivoted Cholesky decomposition.

    Args:
        pairs: Second moments of the outputs of neurons, float64 ``(neurons, neurons)``.
        leaves: Products of what leaves each pair, of that shape.
        count: How many stay.

    Returns:
        The neurons that stay, in their order, and all as mixes of them, float64
        ``(neurons, count)``.
    """
    with worker_pool():
        rest = pairs.clone()
        gains = ((rest @ leaves) * rest).sum(1)
        least = _NOTHING * pairs.diagonal().mean()
        stay: list[int] = []
        for _ in range(count):
            left = rest.diagonal().clamp_min(least)
            ratio = gains / left
            ratio[stay] = -torch.inf
            best = int(ratio.argmax())
            stay.append(best)
            direction = rest[:, best] / left[best].sqrt()
            reach = rest @ (leaves @ direction)
            own = direction @ (leaves @ direction)
            gains += direction * (own * direction - 2 * reach)
            rest -= torch.outer(direction, direction)
        kept = torch.tensor(sorted(stay))
        root = torch.linalg.cholesky(pairs[kept][:, kept])
        mixes = torch.cholesky_solve(pairs[kept], root).T.contiguous()
        mixes[kept] = torch.eye(count, dtype=torch.float64)
        return kept, mixes
