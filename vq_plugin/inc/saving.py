"""The folder that INC's ``save`` writes."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from neural_compressor.common.base_config import BaseConfig
from neural_compressor.torch.utils import QCONFIG_NAME, logger
from torch import nn

from vq_plugin.atomic import write_atomically
from vq_plugin.checkpoint import save as save_file
from vq_plugin.inc.base import CodebookConfig
from vq_plugin.nn import CodebookLayer

LayerKey: TypeAlias = tuple[str, str]

MODEL_FILE = "model.vq"

# INC's load() reads this where it expects the name of a layer, and shows it in its error.
NOTICE = "vq_plugin wrote this folder; read it with vq_plugin.inc.load(folder, original_model)"


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
            holds the budget, or if a layer of INC could not be read back.
    """
    if not any(isinstance(module, CodebookLayer) for module in model.modules()):
        raise ValueError(
            "the model has no codebook layer, so there is nothing to save: autotune leaves it as "
            "it is if no candidate is within the tolerance"
        )
    configs: dict[LayerKey, BaseConfig] = model.qconfig  # type: ignore[assignment]
    _check_hosted(model, configs)
    layers = {str(key): {config.name: config.to_dict()} for key, config in configs.items()}
    text = json.dumps({NOTICE: layers}, indent=1)
    folder = Path(output_dir).expanduser()
    folder.mkdir(parents=True, exist_ok=True)
    save_file(model, folder / MODEL_FILE)
    write_atomically(folder / QCONFIG_NAME, f"{text}\n".encode())
    logger.info("Save the compressed model to %s.", folder)


def _check_hosted(model: nn.Module, configs: Mapping[LayerKey, BaseConfig]) -> None:
    """Finds layers of INC that could not be read back, while they are still there."""
    known = [
        name for (name, _), config in configs.items() if not isinstance(config, CodebookConfig)
    ]
    for name in known:
        if "'" in name or '"' in name:
            raise ValueError(f"layer {name!r}: INC cannot read a name with a quote back: rename it")
    for name, module in model.named_modules():
        ours = any(name == other or name.startswith(f"{other}.") for other in known)
        if type(module).__module__.startswith("neural_compressor") and not ours:
            raise ValueError(
                f"layer {name!r} is a {type(module).__name__} whose settings were lost when it was "
                "loaded or quantized by itself; quantize the whole float model again"
            )


def enable_save(model: nn.Module, configs: Mapping[LayerKey, BaseConfig]) -> None:
    """Lets INC's ``save`` find ours: it asks the first config of a model, then the model.

    Args:
        model: A model that was quantized; changed in place.
        configs: Config by ``(name, type)``.
    """
    earlier = getattr(model, "qconfig", None)
    # Layers that an earlier call gave to another algorithm have their configs there.
    kept = earlier if isinstance(earlier, Mapping) else {}
    kept = {key: config for key, config in kept.items() if isinstance(config, BaseConfig)}
    merged = {**kept, **configs}
    hosted = {
        key: config for key, config in merged.items() if not isinstance(config, CodebookConfig)
    }
    if hosted and not any(isinstance(module, CodebookLayer) for module in model.modules()):
        # The model is INC's alone, to save and to load.
        model.qconfig = hosted  # type: ignore[assignment]
        return
    own = {key: config for key, config in merged.items() if isinstance(config, CodebookConfig)}
    model.qconfig = {**own, **hosted}  # type: ignore[assignment]
    # Unlike the bound method that INC's own algorithms set, this can be pickled.
    model.save = partial(save, model)  # type: ignore[assignment]
