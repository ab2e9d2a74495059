"""Two factors of a matrix, for the inputs that its layer really meets."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from vq_plugin.factors.splits import Split
from vq_plugin.fit.output.metric import LowRank
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import damped
from vq_plugin.fit.parallel import worker_pool

# Added to the diagonal of what is solved for, as a part of its mean.
_NOTHING = 1e-9
# Where nothing is left at all.
_TINY = 1e-30


class Directions(NamedTuple):
    """Orthogonal directions among the rows of matrices, those first that matter most.

    Attributes:
        left: Float64, ``(groups, rows, directions)``.
        singular: What each keeps, float64, ``(directions,)``: its square is a share of the sum of
            squares of the outputs, of all groups.
    """

    left: Tensor
    singular: Tensor


def directions(
    splits: Sequence[Split], weights: Sequence[Tensor], known: Sequence[Moments | None]
) -> Directions:
    """Directions that layers have in common, which are cut alike; of most calls that is one layer.

    The layer's output is ``W·x``. With ``R`` a root of ``E[x xᵀ]`` its sum of squares is that of
    ``W·R``, whose left singular vectors are sought; ``R`` is 1 where nothing is known of ``x``.
    """
    # On one thread: products and decompositions may round differently on several.
    with worker_pool():
        each = list(zip(splits, weights, known, strict=True))
        if splits[0].rows <= len(splits) * splits[0].columns:
            # A fraction of the time that the decomposition of the wide matrix takes.
            squares, left = torch.linalg.eigh(torch.stack([_product(*one) for one in each]).sum(0))
            left, squares = left.flip(2), squares.flip(1).clamp_min(0)
        else:
            seen = torch.cat([_whitened(*one) for one in each], 2)
            left, singular, _ = torch.linalg.svd(seen, full_matrices=False)
            squares = singular.square()
        # Of each direction both signs are right.
        largest = left.gather(1, left.abs().argmax(1, keepdim=True))
        return Directions(left * largest.sign(), squares.sum(0).sqrt())


def multiplied(
    splits: Sequence[Split], weights: Sequence[Tensor], left: Tensor
) -> tuple[Tensor, list[Tensor]]:
    """Factors of weights, float64: one on the left that they have in common, and their own.

    The best weights in the span of ``left``, by whatever inputs it was found: projections.
    """
    with worker_pool():
        each = zip(splits, weights, strict=True)
        right = [left.mT @ split.matrices(weight.double().cpu()) for split, weight in each]
        # Half of each direction's size: codes and training are easier on factors of one size.
        sizes = torch.linalg.vector_norm(torch.cat(right, 2), dim=2, keepdim=True).sqrt()
        halves = torch.where(sizes > 0, sizes, 1.0)
        return left * halves.mT, [one / halves for one in right]


def _product(split: Split, weight: Tensor, moments: Moments | None) -> Tensor:
    """``W·E[x xᵀ]·Wᵀ``, float64."""
    if split.columns_are_inputs:
        matrices = split.matrices(weight.double().cpu())
        return matrices @ _met(split, moments, matrices)
    seen = _whitened(split, weight, moments)
    return seen @ seen.mT


def _met(split: Split, moments: Moments | None, filters: Tensor) -> Tensor:
    """What inputs have in common with filters of them, ``(groups, hidden, inputs)``, damped.

    Float64 ``(groups, inputs, hidden)``. Inputs of which nothing is known count alike, and go
    together with no others where that is not known.
    """
    if moments is None:
        return filters.mT
    if not knows_pairs(moments):
        return squares_of(split, moments).unsqueeze(2) * filters.mT
    metric = damped(moments)
    if isinstance(metric, LowRank):
        rows = metric.rows.double()
        return metric.own.double().unsqueeze(2) * filters.mT + rows.mT @ (rows @ filters.mT)
    return metric.matrix.double() @ filters.mT


def squares_of(split: Split, moments: Moments) -> Tensor:
    """Mean squares of a layer's inputs, float64 ``(groups, inputs)``."""
    by_weight = moments.importance.cpu().double().expand(split.shape)
    return by_weight.reshape(split.groups, split.outputs, -1)[:, 0]


def _whitened(split: Split, weight: Tensor, moments: Moments | None) -> Tensor:
    """``W·R``, float64."""
    matrices = split.matrices(weight.double().cpu())
    if moments is None:
        return matrices
    if not knows_pairs(moments):
        squares = split.inputs_of(squares_of(split, moments))
        return matrices if squares is None else matrices * squares.sqrt().unsqueeze(1)
    pairs = split.inputs_of(pairs_of(moments))
    return matrices if pairs is None else matrices @ torch.linalg.cholesky(pairs)


def knows_pairs(moments: Moments) -> bool:
    """Whether second moments of pairs of inputs are known, and not all 0."""
    return moments.second is not None and bool((moments.raw().diagonal > 0).any())


def second_weight(
    splits: Sequence[Split],
    weights: Sequence[Tensor],
    known: Sequence[Moments | None],
    firsts: Sequence[Tensor],
) -> Tensor:
    """The weight of second layers that fits the layers' outputs best, given the first layers.

    Float64, of the shape ``(groups, out / groups, hidden)`` that :meth:`Split.filters` says: the
    least squares fit of ``W·x`` by what the first layers make of ``x``.
    """
    with worker_pool():
        wanted, seen = [], []
        for split, weight, moments, first in zip(splits, weights, known, firsts, strict=True):
            filters = split.filters(first.double().cpu())
            reached = _met(split, moments, filters)
            rows = weight.double().cpu().reshape(split.groups, split.outputs, -1)
            wanted.append(rows @ reached)
            seen.append(filters @ reached)
        # Layers that share it want it together.
        products = torch.stack(seen).sum(0)
        # Filters may depend on each other.
        least = products.diagonal(0, 1, 2).mean(1, keepdim=True).clamp_min(_TINY)
        products.diagonal(0, 1, 2).add_(_NOTHING * least)
        solved: Tensor = torch.linalg.solve(products, torch.stack(wanted).sum(0).mT)
        return solved.mT


def pairs_of(moments: Moments) -> Tensor:
    """Second moments, damped: float64 ``(groups, inputs, inputs)``."""
    metric = damped(moments)
    if isinstance(metric, LowRank):
        return metric.rows.double().mT @ metric.rows.double() + metric.own.double().diag_embed()
    return metric.matrix.double()
