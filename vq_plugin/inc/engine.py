"""The algorithm that INC runs: observe inputs, fit, put codebook layers in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.common.utils import Mode
from neural_compressor.torch.utils import logger
from torch import nn

from vq_plugin.hosting.statistics import attach_statistics, detach_statistics, gathered_moments
from vq_plugin.inc.base import CodebookConfig
from vq_plugin.inc.files import enable_save
from vq_plugin.inc.gate import check_baseline
from vq_plugin.inc.layers import check_codebooks
from vq_plugin.progress import progress
from vq_plugin.replace import swap
from vq_plugin.select import slots_by_any_name
from vq_plugin.summary import summary


# INC calls an algorithm once for every name that occurs among the configs of a model. The first
# call does the work of all, so calibration runs once; the others find nothing left to do.
def compress_in_place(
    model: nn.Module,
    configs_mapping: Mapping[tuple[str, str], BaseConfig],
    mode: Mode = Mode.QUANTIZE,
    *_: Any,
    run_fn: Callable[..., object] | None = None,
    run_args: tuple[Any, ...] | None = None,
    **__: Any,
) -> nn.Module:
    """What INC calls in ``prepare``, ``convert`` and ``quantize``.

    ``run_fn(model, *run_args)`` calibrates, and may use gradients. The model is changed in place; a
    bare layer becomes a new one. ``configs_mapping`` has layers of other algorithms, too. After a
    ValueError, as where a layer cannot be compressed or was not reached, the model is as it was.
    """
    check_baseline()
    pending = {
        name: config
        for (name, _), config in configs_mapping.items()
        if isinstance(config, CodebookConfig) and config.layer_scheme is not None
    }
    # What an earlier call has coded is no slot any more.
    there = slots_by_any_name(model)
    slots = {name: there[name] for name in pending if name in there}
    pending = {name: pending[name] for name in slots}
    ties = check_codebooks(model, pending)
    if mode == Mode.PREPARE:
        # An earlier prepare may have asked other layers.
        detach_statistics(model, but=[slot.host for slot in slots.values()])
        attach_statistics(slots.values())
        return model
    fresh: list[nn.Module] = []
    try:
        if slots and run_fn is not None:
            fresh = attach_statistics(slots.values())
            run_fn(model, *(run_args or ()))
        moments = gathered_moments(slots, required=run_fn is not None)
        # All fits, before anything is replaced: a model that fails stays as it was.
        bar = progress(pending.items(), desc="compress", unit="layer", leave=False)
        weights = {
            name: config.fit(slots[name], moments.get(name))
            for name, config in bar
            if name not in ties
        }
    except BaseException:
        for host in fresh:
            detach_statistics(host)
        raise
    detach_statistics(model)
    if weights:
        model = swap(model, weights)
        for line in str(summary(model)).splitlines():
            logger.info(line)
    enable_save(model, configs_mapping)
    return model
