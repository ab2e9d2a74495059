"""The algorithm that INC runs: observe inputs, fit, put codebook layers in."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from functools import partial
from typing import Any

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.common.utils import Mode
from neural_compressor.torch.utils import logger
from torch import Tensor, nn
from tqdm import tqdm

from vq_plugin.importance import (
    INPUT_STATS,
    InputMoments,
    attach_moments,
    detach_moments,
    named_importance,
)
from vq_plugin.inc.config import VQConfig
from vq_plugin.inc.files import save
from vq_plugin.inc.layers import codebooks_first
from vq_plugin.model import check_layer, swap, tied_weights
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.schemes import Scheme
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
    ties = _check(model, layers)
    if mode == Mode.PREPARE:
        for name in layers:
            layer = model.get_submodule(name)
            if not hasattr(layer, INPUT_STATS):
                attach_moments(layer)
        return model
    importance = _observed(model, layers, optional=True)
    if layers and mode == Mode.QUANTIZE and run_fn is not None:
        importance = _calibrate(model, layers, run_fn, run_args or ())
    if layers:
        model = _convert(model, layers, ties, importance)
    _leave_traces(model, configs_mapping)
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


def _check(model: nn.Module, layers: Mapping[str, VQConfig]) -> dict[str, str]:
    """Finds what cannot be compressed before any work is done; gives the tied layers back."""
    schemes: dict[str, Scheme] = {}
    for name, config in layers.items():
        check_layer(name, model.get_submodule(name))
        scheme = config.layer_scheme
        assert scheme is not None
        schemes[name] = scheme
    return tied_weights(model, schemes)


def _calibrate(
    model: nn.Module,
    layers: Mapping[str, VQConfig],
    run_fn: Callable[..., object],
    arguments: tuple[Any, ...],
) -> dict[str, Tensor]:
    # The model is the user's own: whatever happens, no statistics are left in it.
    try:
        for name in layers:
            attach_moments(model.get_submodule(name))
        run_fn(model, *arguments)
    except BaseException:
        for name in layers:
            detach_moments(model.get_submodule(name))
        raise
    return _observed(model, layers, optional=False)


def _observed(
    model: nn.Module, layers: Mapping[str, VQConfig], *, optional: bool
) -> dict[str, Tensor]:
    """Takes the statistics off the layers; none count if they are optional and all are empty."""
    found: dict[str, InputMoments] = {}
    for name in layers:
        moments = detach_moments(model.get_submodule(name))
        if moments is not None:
            found[name] = moments
    if optional and not any(moments.count > 0 for moments in found.values()):
        return {}
    return {
        name: named_importance(name, model.get_submodule(name), moments)
        for name, moments in found.items()
    }


def _convert(
    model: nn.Module,
    layers: Mapping[str, VQConfig],
    ties: Collection[str],
    importance: Mapping[str, Tensor],
) -> nn.Module:
    bar = tqdm(layers.items(), desc="compress", unit="layer", leave=False, disable=None)
    # Everything is fitted before anything is replaced: a model that fails stays as it was.
    weights = {
        name: config.fit(name, model.get_submodule(name), importance.get(name))
        for name, config in bar
        if name not in ties
    }
    model = swap(model, weights)
    for line in str(summary(model)).splitlines():
        logger.info(line)
    return model


def _leave_traces(model: nn.Module, configs: Mapping[tuple[str, str], BaseConfig]) -> None:
    """What INC's ``save`` looks for: it asks the first config of the model, then the model."""
    compressed = any(isinstance(module, CodebookLayer) for module in model.modules())
    if compressed or not hasattr(model, "qconfig"):
        # Layers that an earlier call gave to another algorithm have their configs there.
        earlier = getattr(model, "qconfig", {})
        model.qconfig = codebooks_first({**earlier, **configs})  # type: ignore[assignment]
        # Unlike the bound method that INC's own algorithms set, this can be pickled.
        model.save = partial(save, model)  # type: ignore[assignment]
