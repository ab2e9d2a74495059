"""Batch norms whose running statistics fit a compressed model again."""

from __future__ import annotations

from torch import nn

from vq_plugin.calibration import Calibration, run_calibration
from vq_plugin.eval_mode import eval_mode

_BATCH_NORMS = nn.modules.batchnorm._BatchNorm


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
    norms = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BATCH_NORMS) and module.running_mean is not None
    }
    if not norms:
        raise ValueError("the model has no batch norm with running statistics")
    before = {
        norm: (norm.momentum, {key: value.clone() for key, value in norm.named_buffers()})
        for norm in norms.values()
    }
    try:
        with eval_mode(model):
            for norm in norms.values():
                norm.reset_running_stats()
                # A running mean over all batches.
                norm.momentum = None
                norm.training = True
            try:
                run_calibration(model, calibration)
            finally:
                for norm in norms.values():
                    norm.training = False
        _check(norms)
    except BaseException:
        for norm, (_, buffers) in before.items():
            for key, value in buffers.items():
                getattr(norm, key).copy_(value)
        raise
    finally:
        for norm, (momentum, _) in before.items():
            norm.momentum = momentum
    return model


def _check(norms: dict[str, nn.modules.batchnorm._BatchNorm]) -> None:
    for name, norm in norms.items():
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.num_batches_tracked == 0:
            raise ValueError(f"layer {name!r}: calibration never ran it")
        if not bool(norm.running_mean.isfinite().all() & norm.running_var.isfinite().all()):
            raise ValueError(f"layer {name!r}: calibration gave it NaN or infinite inputs")
