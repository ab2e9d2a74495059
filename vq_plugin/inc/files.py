"""The folder that INC's ``save`` writes, and how it is read back."""

from __future__ import annotations

import contextlib
import copy
import io
import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from neural_compressor.torch.quantization import load as load_with_inc
from neural_compressor.torch.utils import QCONFIG_NAME, WEIGHT_NAME, logger
from torch import Tensor, nn

from vq_plugin.checkpoint import CheckpointError
from vq_plugin.checkpoint import load as load_file
from vq_plugin.checkpoint import save as save_file
from vq_plugin.checkpoint.file import read

MODEL_FILE = "model.vq"

# INC's load() reads this where it expects the name of a layer, and shows it in its error.
_NOTICE = "vq_plugin wrote this folder; read it with vq_plugin.inc.load(folder, original_model)"


def save(
    model: nn.Module, output_dir: str | os.PathLike[str] = "./saved_results", *_: Any, **__: Any
) -> None:
    """What INC's ``save(model, folder)`` calls: writes ``model.vq`` and ``qconfig.json``.

    ``model.vq`` holds the whole model, layers of INC's algorithms too, and can be read by
    :func:`vq_plugin.load` where there are none.

    Args:
        model: A model with codebook layers from ``quantize``, ``convert`` or ``autotune``.
        output_dir: The folder; made if it is missing.

    Raises:
        ValueError: If the model has no codebook layer, as where ``autotune`` found none that
            holds the budget.
    """
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model, folder / MODEL_FILE)
    layers = {
        str(key): {config.name: config.to_dict()}
        for key, config in model.qconfig.items()  # type: ignore[operator, union-attr]
    }
    text = json.dumps({_NOTICE: layers}, indent=1)
    (folder / QCONFIG_NAME).write_text(text + "\n", encoding="utf-8")
    logger.info("Save the compressed model to %s.", folder)


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
    model = copy.deepcopy(original_model)
    hosted = _hosted(folder / QCONFIG_NAME)
    if hosted:
        _, tensors = read(folder / MODEL_FILE)
        for key, settings in hosted.items():
            try:
                _put_layer_of_inc(model, key, settings, tensors)
            except (RuntimeError, AssertionError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"{folder}: INC cannot read layer {key}: {error}") from error
        # INC's load() sets eval mode.
        modes = {name: module.training for name, module in original_model.named_modules()}
        for name, module in model.named_modules():
            module.training = modes.get(name, original_model.training)
    return load_file(folder / MODEL_FILE, model)


def _hosted(path: Path) -> dict[str, Any]:
    """Layers of INC's own algorithms, as INC's files name them, and their settings."""
    try:
        layers = json.loads(path.read_text(encoding="utf-8"))[_NOTICE]
        return {
            key: settings
            for key, settings in layers.items()
            if not next(iter(settings)).startswith("vq")
        }
    except FileNotFoundError:
        raise CheckpointError(f"{path}: missing; save the model again") from None
    except (ValueError, KeyError, TypeError, AttributeError, StopIteration) as error:
        raise CheckpointError(f"{path}: damaged ({error!r})") from error


def _put_layer_of_inc(
    model: nn.Module, key: str, settings: Mapping[str, Any], tensors: Mapping[str, Tensor]
) -> None:
    """Lets INC rebuild one layer from a folder of its own making.

    One by one: INC looks up the settings of a layer by whether its name occurs in theirs, which
    gives ``fc1`` the settings of ``fc10``.
    """
    name = key.removeprefix("('").partition("'")[0]
    own = {k: value for k, value in tensors.items() if k.startswith(f"{name}.")}
    if f"{name}.weight" in own:
        # Left in float.
        return
    with tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
        torch.save(own, Path(folder) / WEIGHT_NAME)
        (Path(folder) / QCONFIG_NAME).write_text(json.dumps({key: settings}), encoding="utf-8")
        load_with_inc(folder, original_model=model)
    for path, buffer in list(model.named_buffers()):
        if path in own:
            # INC's layers turn their bias from float16 to float32 when they first run on a CPU.
            parent, _, leaf = path.rpartition(".")
            setattr(model.get_submodule(parent), leaf, buffer.to(own[path].dtype))
