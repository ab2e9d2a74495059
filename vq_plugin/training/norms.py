"""Batch norms whose running statistics fit a compressed model again."""

from __future__ import annotations

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from vq_plugin.calibration import Calibration, run_calibration
from vq_plugin.eval_mode import eval_mode
from vq_plugin.select import check_model


def reestimate_norms(model: nn.Module, calibration: Calibration) -> nn.Module:
    """Takes the running mean and variance of batch norms from unlabelled data anew.

    Compression changes the mean and the size of what layers without a bias give, and the batch norm
    after them goes on subtracting the old mean. Statistics of the batches given, each counting
    alike, take the place of those of the training, as Li et al. 2016 (arXiv 1603.04779) do for a
    new domain. Nothing else changes, and nothing is trained.

    Args:
        model: From :func:`vq_plugin.compress` or a host; its batch norms are changed in place.
        calibration: Unlabelled data, as in :func:`vq_plugin.compress`, in large batches like those
            that the model is to meet.

    Returns:
        ``model``, in the training mode that it had.

    Raises:
        ValueError: If no batch norm keeps running statistics, or the calibration does not reach one
            of them, or gives it NaN or infinite inputs; the model is then as it was.

    Example:
        >>> import torch
        >>> model = nn.Sequential(nn.Linear(4, 2), nn.BatchNorm1d(2)).eval()
        >>> x = torch.randn(64, 4)
        >>> y = reestimate_norms(model, [x])(x)
        >>> bool((y.mean(0).abs() < 1e-5).all())
        True
    """
    check_model(model)
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.running_mean is not None
    }
    if not norms:
        raise ValueError("the model has no batch norm with running statistics")
    switches = [(norm, norm.momentum, norm.training) for norm in norms.values()]
    buffers = [(b, b.clone()) for norm in norms.values() for b in norm.buffers()]
    try:
        with eval_mode(model):
            for norm in norms.values():
                norm.reset_running_stats()
                # A running mean over all batches.
                norm.momentum = None
                norm.training = True
            run_calibration(model, calibration)
        _check(norms)
    except BaseException:
        for buffer, value in buffers:
            buffer.copy_(value)
        raise
    finally:
        for norm, momentum, training in switches:
            norm.momentum, norm.training = momentum, training
    return model


def _check(norms: dict[str, _BatchNorm]) -> None:
    for name, norm in norms.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.num_batches_tracked == 0:
            raise ValueError(f"layer {name!r}: calibration never ran it")
        if not bool(norm.running_mean.isfinite().all() & norm.running_var.isfinite().all()):
            raise ValueError(f"layer {name!r}: calibration gave it NaN or infinite inputs")
