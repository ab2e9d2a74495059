"""Training of what compression leaves free: codebooks, biases and norms."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from functools import partial

from torch import Tensor, nn
from torch.optim import Adam
from torch.utils.hooks import RemovableHandle

from vq_plugin.nn import CodedWeight
from vq_plugin.select import check_model
from vq_plugin.training.loop import Loss, Stop, Training
from vq_plugin.training.settings import check_settings

_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm)


def finetune(
    model: nn.Module,
    loader: Iterable[object],
    *,
    teacher: nn.Module | None = None,
    loss: Loss | None = None,
    epochs: int = 1,
    lr: float = 0.03,
    seed: int = 0,
    stop: Stop | None = None,
    checkpoint: str | os.PathLike[str] | None = None,
) -> nn.Module:
    """Trains codebooks, row scales, biases and norms of a compressed model; codes stay.

    Centers are shared by many weights, so that their gradient is the sum of those of the weights
    (Han et al. 2015, arXiv 1510.00149, section 3.3). By default the model learns what the float
    model says (Hinton et al. 2015, arXiv 1503.02531), for which no labels are needed. Zeros of
    ``KM(keep_zeros=True)`` stay zeros. Adam, whose learning rate falls to zero along a cosine.
    Weights that were not compressed, and parameters that need no gradient, stay as they are.

    The same seed, loader and number of threads give the same bytes, also when a run is killed and
    resumed. The caller's random state is left as it was.

    Args:
        model: From :func:`vq_plugin.compress` or a host; trained in place, its modules in training
            mode where they are now.
        loader: Batches: inputs alone, as a tensor (or what else the model takes as one argument), a
            list of one or a mapping of keyword arguments, or pairs of inputs and targets. Those
            without samples are passed over. Read once each epoch; what it draws from torch's
            generator is seeded.
        teacher: The float model; run in eval mode without gradients, then left as it was.
        loss: Of the model's output and the teacher's, or, without a teacher, the target. By
            default, with a teacher: the cross-entropy between the softmax of both along the last
            dimension; use ``torch.nn.functional.mse_loss`` where outputs are no logits, and a
            function of your own where they are not one tensor.
        epochs: Passes over ``loader``.
        lr: Learning rate at the start. Codebooks and scales get it times the root mean square of
            their values, as weights are small; biases and norms get a tenth of it.
        seed: Of dropout and of a loader that shuffles.
        stop: Called with the model in eval mode after every epoch; ``True`` ends the training. For
            a budget: ``lambda small: budget.holds(baseline, evaluate(small))``.
        checkpoint: File that holds the state after every epoch, in safetensors. If it exists
            already, its run goes on; it is removed at the end.

    Returns:
        ``model``.

    Raises:
        ValueError: If nothing in the model trains, there is neither teacher nor loss, the loader is
            empty, a batch has another form, the loss becomes NaN or infinite, or the checkpoint is
            of another model or run.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(8, 64), nn.ReLU(), nn.Linear(64, 4)).eval()
        >>> small = vq.compress(model, vq.PQ(k=8, dim=4))
        >>> batches = [torch.randn(64, 8) for _ in range(20)]
        >>> def error():
        ...     return nn.functional.mse_loss(small(batches[0]), model(batches[0])).item()
        >>> before = error()
        >>> small = vq.finetune(small, batches, teacher=model, epochs=2)
        >>> error() < before
        True
    """
    check_model(model)
    check_settings(epochs=epochs, lr=lr, seed=seed, teacher=teacher, loss=loss)
    tables, rest = _trained(model)
    sizes = [max(float(p.detach().double().square().mean().sqrt()), 1e-8) for p in tables]
    groups = [{"params": [p], "lr": lr * size} for p, size in zip(tables, sizes, strict=True)]
    groups += [{"params": rest, "lr": lr / 10}] * bool(rest)
    settings = {"epochs": epochs, "lr": lr, "seed": seed}
    training = Training("finetune", model, Adam(groups), teacher, loss, epochs, settings)
    with _pinned_kept(model):
        training.run(loader, seed=seed, stop=stop, checkpoint=checkpoint)
    return model


def _trained(model: nn.Module) -> tuple[list[nn.Parameter], list[nn.Parameter]]:
    """Codebooks and row scales; biases and norms."""
    tables: dict[int, nn.Parameter] = {}
    rest: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, parameter in module.named_parameters(recurse=False):
            if not parameter.requires_grad:
                continue
            if isinstance(module, CodedWeight) and name in ("codebooks", "scale"):
                tables[id(parameter)] = parameter
            elif "bias" in name or isinstance(module, _NORMS):
                rest[id(parameter)] = parameter
    if not tables:
        raise ValueError(
            "no codebooks train: compress the model first, or unfreeze it with requires_grad_(True)"
        )
    return list(tables.values()), list(rest.values())


@contextmanager
def _pinned_kept(model: nn.Module) -> Iterator[None]:
    """Centers that are pinned get no gradient, hence no step of Adam."""
    handles: list[RemovableHandle] = []
    for module in model.modules():
        if not isinstance(module, CodedWeight) or not module.codebooks.requires_grad:
            continue
        pinned = module.scheme.pinned(module.codebooks.detach())
        if pinned is not None:
            without = partial(Tensor.masked_fill, mask=pinned, value=0)
            handles.append(module.codebooks.register_hook(without))  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
