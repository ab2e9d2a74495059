"""The algorithm that INC runs: observe inputs, fit, put codebook layers in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.common.utils import Mode
from neural_compressor.torch.utils import logger
from torch import nn
from tqdm import tqdm

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.importance import (
    INPUT_STATS,
    InputMoments,
    attach_moments,
    detach_moments,
    named_moments,
)
from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.files import enable_save
from vq_plugin.inc.layers import check_codebooks
from vq_plugin.model import swap
from vq_plugin.nn import codebook_type
from vq_plugin.summary import summary


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

    Args:
        model: The float model, or a prepared one; changed in place.
        configs_mapping: Config of every layer by ``(name, type)``, also of other algorithms.
        mode: What INC was called for.
        run_fn: Runs the model on calibration data; it may use gradients.
        run_args: Arguments of ``run_fn`` after the model.

    Returns:
        The model; a new layer if the model is a bare one.

    Raises:
        ValueError: If a layer cannot be compressed or calibration does not reach it; the model is
            then as it was.
    """
    layers = _pending(model, configs_mapping)
    ties = check_codebooks(model, layers)
    if mode == Mode.PREPARE:
        _forget(model, but=layers)
        _observe(model, layers)
        return model
    weights = _fit_calibrated(model, layers, ties, run_fn, run_args or ()) if layers else {}
    _forget(model)
    if weights:
        model = swap(model, weights)
        for line in str(summary(model)).splitlines():
            logger.info(line)
    enable_save(model, configs_mapping)
    return model


def _pending(
    model: nn.Module, configs: Mapping[tuple[str, str], BaseConfig]
) -> dict[str, VQConfig]:
    """The layers that are to become codebook layers and are none yet."""
    return {
        name: config
        for (name, _), config in configs.items()
        if isinstance(config, VQConfig)
        and config.layer_scheme is not None
        and codebook_type(model.get_submodule(name)) is not None
    }


def _observe(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    """Lets layers gather statistics; those that had not done so yet."""
    fresh = [layer for layer in map(model.get_submodule, names) if not hasattr(layer, INPUT_STATS)]
    for layer in fresh:
        attach_moments(layer)
    return fresh


def _forget(model: nn.Module, but: Iterable[str] = ()) -> None:
    """Takes all statistics off, also those that an earlier ``prepare`` asked of other layers."""
    kept = {model.get_submodule(name) for name in but}
    for module in list(model.modules()):
        if module not in kept:
            detach_moments(module)


def _fit_calibrated(
    model: nn.Module,
    layers: Mapping[str, VQConfig],
    ties: Collection[str],
    run_fn: Callable[..., object] | None,
    arguments: tuple[Any, ...],
) -> dict[str, CodebookWeight]:
    """All fits, before anything is replaced: a model that fails stays as it was."""
    fresh: list[nn.Module] = []
    try:
        if run_fn is not None:
            fresh = _observe(model, layers)
            run_fn(model, *arguments)
        moments = _moments(model, layers, required=run_fn is not None)
        bar = tqdm(layers.items(), desc="compress", unit="layer", leave=False, disable=None)
        return {
            name: config.fit(name, model.get_submodule(name), moments.get(name))
            for name, config in bar
            if name not in ties
        }
    except BaseException:
        for layer in fresh:
            detach_moments(layer)
        raise


def _moments(model: nn.Module, layers: Iterable[str], *, required: bool) -> dict[str, Moments]:
    """From the statistics of the layers; nothing if they are not required and all empty."""
    found = {name: getattr(model.get_submodule(name), INPUT_STATS, None) for name in layers}
    observed = {name: own for name, own in found.items() if isinstance(own, InputMoments)}
    if not required and not any(own.count > 0 for own in observed.values()):
        return {}
    return {
        name: named_moments(name, model.get_submodule(name), own) for name, own in observed.items()
    }
