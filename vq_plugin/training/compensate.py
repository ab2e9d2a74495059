"""Layers left in float make up for what the compressed ones before them changed."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn

from vq_plugin.calibration import (
    MOST_INPUTS,
    Calibration,
    check_batches,
    read_rows,
    run_calibration,
)
from vq_plugin.default_device import cpu_by_default
from vq_plugin.eval_mode import as_it_was
from vq_plugin.fit.parallel import worker_pool
from vq_plugin.nn.inputs import convolved, multiplied
from vq_plugin.nn.slots import Inputs
from vq_plugin.progress import progress
from vq_plugin.select import check_model

# Ridge, as a part of every input's own variance and of their mean: few samples say little.
_RIDGE = 0.1
_FLOOR = 1e-3


def compensate(small: nn.Module, model: nn.Module, calibration: Calibration) -> nn.Module:
    """Fits layers that were left in float to the inputs that compression gives them.

    A Linear or convolution behind compressed layers meets inputs ``x̂`` in the place of ``x``. The
    weight and the bias that bring its outputs back to those of the float model are a least
    squares problem, ``min E‖W·x + b − W'·x̂ − b'‖²``, damped towards the old weight:
    ``W' = W + W·(E[x x̂ᵀ] − E[x̂ x̂ᵀ])·(E[x̂ x̂ᵀ] + ridge)⁻¹``, with centered moments where there is a
    bias. Layers are taken in their order, and each sees what those before it made up for. There is
    no training, and sizes and rates stay.

    Args:
        small: From :func:`vq_plugin.compress`; its float layers are changed in place.
        model: The float model that it came from; not changed.
        calibration: Unlabelled data, as in :func:`vq_plugin.compress`; a callable is to run both
            models on the same inputs in the same order. Kept in memory as inputs of one layer at a
            time.

    Returns:
        ``small``.

    Raises:
        ValueError: If no layer is left in float, the calibration gives them no samples, or gives
            one NaN or infinite inputs; layers before it are changed by then.

    Example:
        >>> import vq_plugin as vq
        >>> _ = torch.manual_seed(0)
        >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 8)).eval()
        >>> x = [torch.randn(512, 64)]
        >>> small = vq.compress(model, {"0": vq.PQ(k=8, dim=4)}, x)
        >>> def error():
        ...     return (small(x[0]) - model(x[0])).square().mean().item()
        >>> before = error()
        >>> small = compensate(small, model, x)
        >>> error() < before
        True
    """
    check_model(small, "small")
    check_model(model)
    check_batches(calibration)
    if not callable(calibration):
        # Read several times, in the same order: a loader may shuffle, a generator runs dry.
        calibration = list(calibration)
    floats = dict(model.named_modules())
    layers = {
        name: layer
        for name, layer in small.named_modules()
        if type(layer) in (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)
        and type(floats.get(name)) is type(layer)
    }
    if not layers:
        raise ValueError("no Linear or convolution of the model is left in float")
    given: list[bool] = []
    bar = progress(layers.items(), desc="compensate", unit="layer", leave=False)
    for name, layer in bar:
        if "weight" not in layer._parameters:
            warnings.warn(
                f"layer {name!r} computes its weight anew in every pass: left as it is",
                stacklevel=2,
            )
            continue
        inputs = layer.weight[0].numel()
        if inputs > MOST_INPUTS:
            warnings.warn(
                f"layer {name!r} has {inputs} inputs, more than {MOST_INPUTS}: left as it is",
                stacklevel=2,
            )
            continue
        wanted = _inputs(model, floats[name], calibration)
        met = _inputs(small, layer, calibration)
        given.append(bool(wanted))
        if [x.shape for x in wanted] != [x.shape for x in met]:
            raise ValueError(f"layer {name!r}: both models must meet inputs of the same shapes")
        # Behind nothing that was compressed, or never run.
        if all(map(torch.equal, wanted, met)):
            continue
        if not all(bool(x.isfinite().all()) for x in (*wanted, *met)):
            raise ValueError(f"layer {name!r}: calibration gave it NaN or infinite inputs")
        with worker_pool(), torch.no_grad(), cpu_by_default():
            _refit(layer, wanted, met)
    if given and not any(given):
        raise ValueError("calibration gave no samples to the layers that are left in float")
    return small


def _inputs(model: nn.Module, layer: nn.Module, calibration: Calibration) -> list[Tensor]:
    """Everything that the layer is given while the model runs."""
    seen: list[Tensor] = []

    def keep(_: nn.Module, arguments: tuple[Tensor, ...], keywords: dict[str, Tensor]) -> None:
        value = arguments[0] if arguments else keywords["input"]
        if value.numel():
            seen.append(value.detach().clone())

    handle = layer.register_forward_pre_hook(keep, with_kwargs=True)
    try:
        with as_it_was(model):
            run_calibration(model, calibration)
    finally:
        handle.remove()
    return seen


def _refit(layer: nn.Module, wanted: list[Tensor], met: list[Tensor]) -> None:
    weight, bias = layer.weight, layer.bias
    assert isinstance(weight, Tensor)
    inputs: Inputs = multiplied if isinstance(layer, nn.Linear) else convolved
    count, first, cross, square = 0, torch.zeros(()), torch.zeros(()), torch.zeros(())
    for values in zip(wanted, met, strict=True):
        pieces = [next(inputs(layer, {"input": value}, "weight")) for value in values]
        # The same rows of both: which ones depends on their number alone.
        pairs = zip(*(read_rows(piece, count) for piece in pieces), strict=True)
        for (x, counts), (y, _) in pairs:
            first = first + counts * torch.stack([x, y]).sum(2, dtype=torch.float64)
            cross = cross + counts * (x.mT.double() @ y.double())
            square = square + counts * (y.mT.double() @ y.double())
        count += pieces[0].shape[1]
    mean, met_mean = (first / count).unsqueeze(3)
    cross, square = cross / count, square / count
    if bias is not None:
        cross = cross - mean * met_mean.mT
        square = square - met_mean * met_mean.mT
    damped = square.clone()
    diagonal = damped.diagonal(0, 1, 2)
    diagonal += _RIDGE * diagonal + _FLOOR * diagonal.mean() + torch.finfo(torch.float32).tiny
    rows = weight.double().reshape(len(square), -1, square.shape[1])
    change = torch.linalg.solve(damped, rows @ (cross - square), left=False)
    weight += change.reshape(weight.shape).to(weight)
    if isinstance(bias, Tensor):
        moved = rows @ (mean - met_mean) - change @ met_mean
        bias += moved.flatten().to(bias)
