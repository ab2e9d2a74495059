"""Gradual magnitude pruning: a float model most of whose weights are exactly zero."""

from __future__ import annotations

import os
from collections.abc import Iterable, Sequence, Sized

import torch
from torch import Tensor, nn
from torch.optim import Adam

from vq_plugin.replace import assemble
from vq_plugin.select import Pattern, check_model
from vq_plugin.training.chosen import chosen_weights
from vq_plugin.training.loop import Loss, Training
from vq_plugin.training.settings import check_settings

# Weights are chosen anew this often while more and more of them go.
_MOMENTS = 100
# The rest of the training lets those that stay settle.
_RAMP = 0.5
# A ramp over half of them needs a step that is past it.
_LEAST_EPOCHS = 3


def prune(
    model: nn.Module,
    loader: Iterable[object],
    sparsity: float,
    *,
    layers: Sequence[Pattern] = ("*",),
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    epochs: int = 3,
    lr: float = 2e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Sets most weights of a model to zero, more and more of them, while the others train.

    The share of zeros rises along a cubic to ``sparsity`` at half of the training (Zhu & Gupta
    2017, arXiv 1710.01878). One ranking of all weights decides: a weight's square over the sum of
    the squares of its layer that are no smaller (LAMP, Lee et al. 2021, arXiv 2010.07611). All
    parameters train, with Adam and a learning rate that falls to zero along a cosine, on what the
    float model says (Hinton et al. 2015, arXiv 1503.02531).

    What comes out is an ordinary float model. Compress it with ``KM(keep_zeros=True)``, whose zeros
    take few bits in a file. A model that was pruned in another way, as by
    ``torch.nn.utils.prune``, needs no more than that.

    The same seed, loader and number of threads give the same bytes, also when a run is killed and
    resumed.

    Args:
        model: Float model; it is not changed. Modules train in training mode where they are in it
            now: batch norms learn new statistics after ``model.train()``.
        loader: Batches: inputs alone, as a tensor (or what else the model takes as one argument), a
            list of one or a mapping of keyword arguments, or pairs of inputs and targets. Those
            without samples are passed over. Read once each epoch; what it draws from torch's
            generator is seeded. Small batches (32 to 64) do best: there are few
            epochs.
        sparsity: Share of zeros among the weights of all chosen layers, at least 0, below 1.
        layers: Which layers lose weights: patterns as in :func:`vq_plugin.compress`. The others
            train, too.
        teacher: A float model to learn from, run in eval mode; ``model`` itself if there is neither
            this nor ``loss``.
        loss: Of the model's output and the teacher's, or, without a teacher, the target; needed
            where outputs are not one tensor.
        epochs: Passes over ``loader``.
        lr: Learning rate at the start.
        seed: Of dropout and of a loader that shuffles.
        checkpoint: File that holds the state after every epoch, in safetensors. If it exists
            already, its run goes on; it is removed at the end.

    Returns:
        A new float model, in the training mode of ``model``.

    Raises:
        ValueError: If ``sparsity`` is out of range, a loader without a length is to be read less
            than three times, a pattern matches nothing, a chosen layer keeps
            its weight in parts or frozen, or :func:`vq_plugin.finetune` would raise it.

    Example:
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
        >>> batches = [torch.randn(64, 8) for _ in range(20)]
        >>> sparse = vq.prune(model, batches, 0.9)
        >>> sum(int((sparse[i].weight != 0).sum()) for i in (0, 2)), 8 * 64 + 64 * 4
        (77, 768)
        >>> small = vq.compress(sparse, vq.KM(k=5, keep_zeros=True))
    """
    check_model(model)
    check_settings(epochs=epochs, lr=lr, seed=seed, teacher=teacher, loss=loss)
    if not 0 <= sparsity < 1:
        raise ValueError(f"sparsity must be at least 0 and below 1, got {sparsity}")
    if not isinstance(loader, Sized) and epochs < _LEAST_EPOCHS:
        raise ValueError(
            f"a loader without a length has weights go epoch by epoch: {_LEAST_EPOCHS} epochs "
            f"at least, got {epochs}"
        )
    sparse = assemble(model, {})
    weights = list(chosen_weights(sparse, layers).values())
    total = sum(weight.numel() for weight in weights)
    gone: list[Tensor] = []
    moment = -1

    @torch.no_grad()
    def before_step(done: float) -> None:
        nonlocal moment
        now = int(min(done / _RAMP, 1) * _MOMENTS)
        if now > moment:
            moment = now
            share = sparsity * (1 - (1 - now / _MOMENTS) ** 3)
            _keep_largest(weights, total - round(share * total))
        # From the weights themselves, so that a run that goes on from a checkpoint has them, too.
        gone[:] = [weight == 0 for weight in weights]

    @torch.no_grad()
    def after_step() -> None:
        for weight, mask in zip(weights, gone, strict=True):
            weight.masked_fill_(mask, 0)

    optimizer = Adam([p for p in sparse.parameters() if p.requires_grad], lr=lr)
    teacher = model if teacher is None and loss is None else teacher
    settings = {"sparsity": sparsity, "epochs": epochs, "lr": lr, "seed": seed}
    training = Training("prune", sparse, optimizer, teacher, loss, epochs, settings)
    training.run(
        loader, seed=seed, checkpoint=checkpoint, before_step=before_step, after_step=after_step
    )
    # Where there were too few steps to get there.
    _keep_largest(weights, total - round(sparsity * total))
    return sparse


@torch.no_grad()
def _keep_largest(weights: Sequence[Tensor], count: int) -> None:
    """Sets all weights but ``count`` to zero, those of the smallest scores."""
    nonzero = [weight.flatten().nonzero().flatten() for weight in weights]
    scores = torch.cat([_scores(w.flatten()[i]) for w, i in zip(weights, nonzero, strict=True)])
    surplus = len(scores) - count
    if surplus <= 0:
        return
    limit = scores.kthvalue(surplus).values
    smallest = scores < limit
    # Of equal scores the first go: which these are must not depend on threads.
    equal = (scores == limit).nonzero().flatten()
    smallest[equal[: surplus - int(smallest.sum())]] = True
    by_weight = torch.split(smallest, [len(indices) for indices in nonzero])
    for weight, indices, mask in zip(weights, nonzero, by_weight, strict=True):
        weight.view(-1)[indices[mask]] = 0


def _scores(values: Tensor) -> Tensor:
    """Squares, each over the sum of itself and all larger ones, ``(n,)``."""
    ordered, order = values.square().sort(descending=True, stable=True)
    shares = ordered / ordered.cumsum(0, dtype=torch.float64)
    return torch.empty_like(shares).scatter_(0, order, shares)
