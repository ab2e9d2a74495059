"""Sparse factors: bases and coefficients trained in turn, and most coefficients exactly zero."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.optim import Adam

from vq_plugin.factorize import FactorizedLayer
from vq_plugin.factorize.layers import whole_kernels
from vq_plugin.replace import assemble
from vq_plugin.select import check_model
from vq_plugin.training.loop import Loss, Training, soft_cross_entropy
from vq_plugin.training.settings import check_settings

# Share of the epochs before coefficients are cut; the rest lets those that stay settle.
_RAMP = 0.5
_ROUNDING = 1e-9


def prune_factors(
    model: nn.Module,
    loader: Iterable[object],
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    penalty: float = 1e-4,
    deviations: float = 1.0,
    epochs: int = 4,
    lr: float = 2e-3,
    seed: int = 0,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Sets most coefficients of a factorized model to zero, while all its parameters train.

    The training of PENNI (Li et al. 2020, arXiv 2005.07133): the first layers of products, such as
    basis kernels, and the second ones, their coefficients, train in turn from batch to batch, and
    the sum of the magnitudes of coefficients is added to the loss. After half of the epochs those
    below a number of standard deviations of their layer become zero and stay it; all others go on
    without that term. Adam, whose learning rate falls to zero along a cosine.

    What comes out is an ordinary float model. Compress it with ``KM(keep_zeros=True)``, whose zeros
    take few bits in a file; :func:`vq_plugin.count_work` says what is left to multiply.

    The same seed, loader and number of threads give the same bytes, also when a run is killed and
    resumed.

    Args:
        model: Float model, of :func:`vq_plugin.factorize`; it is not changed. Modules train in
            training mode where they are in it now: batch norms learn new statistics after
            ``model.train()``.
        loader: Batches, as for :func:`vq_plugin.finetune`.
        teacher: The float model from before it was factorized.
        loss: Of the model's output and the teacher's, or, without a teacher, the target, as for
            :func:`vq_plugin.finetune`.
        penalty: What a coefficient's magnitude adds to the loss.
        deviations: Coefficients of less than so many standard deviations become zero.
        epochs: Passes over ``loader``, at least 2.
        lr: Learning rate at the start.
        seed: Of dropout and of a loader that shuffles.
        checkpoint: File that holds the state after every epoch, in safetensors. If it exists
            already, its run goes on; it is removed at the end.

    Returns:
        A new model, in the training mode of ``model``.

    Raises:
        ValueError: If nothing in the model is factorized or trains, a number is out of range, or
            :func:`vq_plugin.finetune` would raise it.

    Example:
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Conv2d(8, 16, 3), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4))
        >>> batches = [torch.randn(16, 8, 6, 6) for _ in range(20)]
        >>> small = vq.factorize(model.eval(), {"0": vq.Basis(d=4)})
        >>> sparse = vq.prune_factors(small, batches, teacher=model)
        >>> zeros = sparse[0].coefficients.weight == 0
        >>> 0.5 < zeros.float().mean().item() < 0.9
        True
    """
    check_model(model)
    check_settings(epochs=epochs, lr=lr, seed=seed, teacher=teacher, loss=loss)
    _check(penalty, deviations, epochs)
    sparse = assemble(model, {})
    firsts, seconds = _trained(sparse)
    cut_after = round(_RAMP * epochs) / epochs
    cut: bool | None = None
    epoch, firsts_turn = -1, False
    gone: list[Tensor] = []

    def before_step(done: float) -> None:
        nonlocal cut, epoch, firsts_turn
        if cut is None:
            # A run that goes on does so at the beginning of an epoch.
            cut = done > cut_after
        if not cut and done >= cut_after:
            for weight in seconds:
                _drop(weight, deviations)
            cut = True
        if cut:
            # From the weights themselves, so that a run that goes on has them, too.
            gone[:] = [weight.detach() == 0 for weight in seconds]
        # Turns begin anew with every epoch, as a run that goes on does.
        now = math.floor(done * epochs + _ROUNDING)
        firsts_turn = bool(firsts) and (now > epoch or not firsts_turn)
        epoch = now
        for weights, turn in ((firsts, firsts_turn or cut), (seconds, not firsts_turn or cut)):
            for weight in weights:
                weight.requires_grad_(turn)

    @torch.no_grad()
    def after_step() -> None:
        for weight, mask in zip(seconds, gone, strict=bool(gone)):
            weight.masked_fill_(mask, 0)

    error = soft_cross_entropy if loss is None and teacher is not None else loss

    def penalized(output: object, target: object) -> Tensor:
        assert error is not None
        value = error(output, target)  # type: ignore[arg-type]
        return value if cut else value + penalty * sum(weight.abs().sum() for weight in seconds)

    optimizer = Adam([p for p in sparse.parameters() if p.requires_grad], lr=lr)
    settings = {
        "penalty": penalty, "deviations": deviations, "epochs": epochs, "lr": lr, "seed": seed,
    }  # fmt: skip
    run = None if error is None else penalized
    training = Training("prune_factors", sparse, optimizer, teacher, run, epochs, settings)
    with whole_kernels(sparse):
        training.run(
            loader, seed=seed, checkpoint=checkpoint, before_step=before_step, after_step=after_step
        )
    for weight in (*firsts, *seconds):
        weight.requires_grad_(True)
    return sparse


def _check(penalty: float, deviations: float, epochs: int) -> None:
    for name, value in (("penalty", penalty), ("deviations", deviations)):
        if not value >= 0:
            raise ValueError(f"{name} must not be negative, got {value}")
    if epochs < 2:
        raise ValueError(f"coefficients are cut between two epochs: 2 at least, got {epochs}")


def _trained(model: nn.Module) -> tuple[list[Tensor], list[Tensor]]:
    """First and second weights of the products in a model; one that layers share is there once."""
    layers = [module for module in model.modules() if isinstance(module, FactorizedLayer)]
    if not layers:
        raise ValueError("nothing in the model is factorized: give what vq.factorize makes")
    first, second = (
        {id(weight): weight for weight in weights if weight.requires_grad}
        for weights in zip(*(layer.weights for layer in layers), strict=True)
    )
    if not second:
        raise ValueError("the factors are frozen: unfreeze them with requires_grad_(True)")
    return list(first.values()), list(second.values())


@torch.no_grad()
def _drop(weight: Tensor, deviations: float) -> None:
    """Sets a weight's values of few standard deviations to zero."""
    weight.masked_fill_(weight.abs() < deviations * weight.std(correction=0), 0)
