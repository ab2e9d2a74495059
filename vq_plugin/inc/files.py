"""The folder that INC's ``save`` writes, and how it is read back."""

from __future__ import annotations

import ast
import contextlib
import io
import json
import os
import tempfile
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

import torch
from neural_compressor.common.base_config import BaseConfig, config_registry
from neural_compressor.torch.quantization import load as load_with_inc
from neural_compressor.torch.quantization.config import FRAMEWORK_NAME
from neural_compressor.torch.utils import QCONFIG_NAME, WEIGHT_NAME, logger
from torch import Tensor, nn

from vq_plugin.atomic import write_atomically
from vq_plugin.checkpoint import CheckpointError, open_file
from vq_plugin.checkpoint import load as load_file
from vq_plugin.checkpoint import save as save_file
from vq_plugin.inc.base import CodebookConfig
from vq_plugin.inc.schemes import register_known
from vq_plugin.nn import CodebookLayer
from vq_plugin.replace import assemble

LayerKey: TypeAlias = tuple[str, str]

MODEL_FILE = "model.vq"

# INC's load() reads this where it expects the name of a layer, and shows it in its error.
_NOTICE = "vq_plugin wrote this folder; read it with vq_plugin.inc.load(folder, original_model)"


def save(
    model: nn.Module, output_dir: str | os.PathLike[str] = "./saved_results", *_: Any, **__: Any
) -> None:
    """What INC's ``save(model, folder)`` calls: writes ``model.vq`` and ``qconfig.json``.

    ``model.vq`` holds the whole model, layers of INC's algorithms too, and can be read by
    :func:`vq_plugin.load` where there are none. ValueError if there is no codebook layer, as where
    ``autotune`` found none that holds the budget, or a layer of INC could not be read back.
    """
    if not any(isinstance(module, CodebookLayer) for module in model.modules()):
        raise ValueError(
            "the model has no codebook layer, so there is nothing to save: autotune leaves it as "
            "it is if no candidate is within the tolerance"
        )
    configs: dict[LayerKey, BaseConfig] = model.qconfig  # type: ignore[assignment]
    _check_hosted(model, configs)
    layers = {str(key): {config.name: config.to_dict()} for key, config in configs.items()}
    text = json.dumps({_NOTICE: layers}, indent=1)
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model, folder / MODEL_FILE)
    write_atomically(folder / QCONFIG_NAME, f"{text}\n".encode())
    logger.info("Save the compressed model to %s.", folder)


def _check_hosted(model: nn.Module, configs: Mapping[LayerKey, BaseConfig]) -> None:
    """Finds layers of INC that could not be read back, while they are still there."""
    hosted = [name for name, _ in _hosted(configs)]
    for name in hosted:
        if "'" in name or '"' in name:
            raise ValueError(f"layer {name!r}: INC cannot read a name with a quote back: rename it")
    for name, module in model.named_modules():
        known = any(name == other or name.startswith(f"{other}.") for other in hosted)
        if type(module).__module__.startswith("neural_compressor") and not known:
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__} whose settings were lost when it was "
                "loaded or quantized by itself; quantize the whole float model again"
            )


def _hosted(configs: Mapping[LayerKey, BaseConfig]) -> dict[LayerKey, BaseConfig]:
    """Those of INC's own algorithms."""
    return {key: c for key, c in configs.items() if not isinstance(c, CodebookConfig)}


def enable_save(model: nn.Module, configs: Mapping[LayerKey, BaseConfig]) -> None:
    """Lets INC's ``save`` find ours: it asks the first config of a model, then the model."""
    earlier = getattr(model, "qconfig", None)
    # Layers that an earlier call gave to another algorithm have their configs there.
    kept = earlier if isinstance(earlier, Mapping) else {}
    kept = {key: config for key, config in kept.items() if isinstance(config, BaseConfig)}
    merged = {**kept, **configs}
    hosted = _hosted(merged)
    if hosted and not any(isinstance(module, CodebookLayer) for module in model.modules()):
        # The model is INC's alone, to save and to load.
        model.qconfig = hosted  # type: ignore[assignment]
        return
    ours = {key: config for key, config in merged.items() if key not in hosted}
    model.qconfig = {**ours, **hosted}  # type: ignore[assignment]
    # Unlike the bound method that INC's own algorithms set, this can be pickled.
    model.save = partial(save, model)  # type: ignore[assignment]


def load(checkpoint_dir: str | os.PathLike[str], original_model: nn.Module) -> nn.Module:
    """Reads a folder that INC's ``save`` wrote of a model with codebook layers.

    Args:
        checkpoint_dir: The folder.
        original_model: Float model of the same architecture; its values do not matter, and it is
            not changed.

    Returns:
        A new model whose outputs are bit for bit those of the saved one, in the training mode of
        ``original_model``.

    Raises:
        FileNotFoundError: If there is no such folder.
        CheckpointError: If the folder is damaged, of another kind, or does not fit the model.

    Example:
        >>> import tempfile, torch
        >>> from neural_compressor.torch.quantization import quantize, save
        >>> from vq_plugin.inc import KMConfig
        >>> small = quantize(torch.nn.Sequential(torch.nn.Linear(64, 32)), KMConfig(k=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save(small, folder)
        ...     again = load(folder, torch.nn.Sequential(torch.nn.Linear(64, 32)))
        >>> bool(torch.equal(again[0].weight, small[0].weight))
        True
    """
    folder = Path(checkpoint_dir).expanduser()
    if not folder.is_dir():
        raise FileNotFoundError(f"{folder}: no such folder")
    if not (folder / MODEL_FILE).exists():
        raise CheckpointError(
            f"{folder}: no {MODEL_FILE} in it; folders without codebooks are read by "
            "neural_compressor.torch.quantization.load"
        )
    model = assemble(original_model, {})
    settings = _read_settings(folder / QCONFIG_NAME)
    register_known()
    path = folder / QCONFIG_NAME
    configs = {key: _config(layer_settings, path) for key, layer_settings in settings.items()}
    hosted = _hosted(configs)
    if hosted:
        tensors = open_file(folder / MODEL_FILE).tensors
        for key in hosted:
            try:
                _put_layer_of_inc(model, key, settings[key], tensors)
            except (RuntimeError, AssertionError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{folder}: INC cannot read layer {key}: {error}") from error
        # INC's load() sets eval mode.
        modes = {name: module.training for name, module in original_model.named_modules()}
        for name, module in model.named_modules():
            module.training = modes.get(name, original_model.training)
    restored = load_file(folder / MODEL_FILE, model)
    enable_save(restored, configs)
    return restored


def _read_settings(path: Path) -> dict[LayerKey, dict[str, Any]]:
    """Algorithm and settings of every layer."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(content, dict) and content.get(_NOTICE) is not None:
            layers = content[_NOTICE].items()
            return {ast.literal_eval(key): dict(settings) for key, settings in layers}
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; save the model again") from None
    except (ValueError, TypeError, SyntaxError, AttributeError) as error:
        raise CheckpointError(f"{path}: damaged ({error})") from error
    raise CheckpointError(
        f"{path}: not the one that was written with {MODEL_FILE}; has INC saved another model "
        "into this folder?"
    )


def _config(settings: Mapping[str, Any], path: Path) -> BaseConfig:
    try:
        ((algorithm, values),) = settings.items()
        return config_registry.get_cls_configs()[FRAMEWORK_NAME][algorithm].from_dict(values)
    except (ValueError, KeyError, TypeError) as error:
        what = repr(error) if isinstance(error, KeyError) else error
        raise CheckpointError(f"{path}: damaged ({what})") from error


def _put_layer_of_inc(
    model: nn.Module, key: LayerKey, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Lets INC rebuild one layer from a folder of its own making.

    One by one: INC looks up the settings of a layer by whether its name occurs in theirs, which
    gives ``fc1`` the settings of ``fc10``.
    """
    name, _ = key
    saved = {path: value for path, value in tensors.items() if path.startswith(f"{name}.")}
    if f"{name}.weight" in saved:
        # Left in float.
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save(saved, Path(folder) / WEIGHT_NAME)
        text = json.dumps({str(key): settings})
        (Path(folder) / QCONFIG_NAME).write_text(text, encoding="utf-8")
        load_with_inc(folder, original_model=model)
    layer = model.get_submodule(name)
    for path, buffer in list(layer.named_buffers()):
        dtype = saved.get(f"{name}.{path}", buffer).dtype
        # INC's layers turn their bias from float16 to float32 when they first run on a CPU.
        parent, _, leaf = path.rpartition(".")
        setattr(layer.get_submodule(parent), leaf, buffer.to(dtype))
