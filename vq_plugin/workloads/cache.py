"""Where trained checkpoints live, so that each model is trained once per machine."""

import copy
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vq_plugin.atomic import write_atomically
from vq_plugin.user_cache import cache_dir

M = TypeVar("M", bound=nn.Module)

# What this process has trained and can keep nowhere, as a user without a home.
_unkept: dict[str, dict[str, Any]] = {}


def trained(name: str, model: M, train: Callable[[M], object]) -> M:
    """`model` with the weights kept under `name`, trained if need be; ValueError if corrupt."""
    path = _place(f"{name}.safetensors")
    if path is None:
        if name not in _unkept:
            print(
                f"vq_plugin: training {name}, which cannot be kept: VQ_PLUGIN_CACHE names a folder "
                "that can be written to",
                file=sys.stderr,
            )
            train(model)
            _unkept[name] = copy.deepcopy(model.state_dict())
        model.load_state_dict(_unkept[name])
        return model.eval()
    if not path.exists():
        print(f"vq_plugin: training {name} once; will be kept as {path}", file=sys.stderr)
        train(model)
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, save({k: t.contiguous() for k, t in model.state_dict().items()}))
    # A model just trained is read back too, so that the first run uses exactly what later runs use.
    try:
        model.load_state_dict(load_file(path))
    except (SafetensorError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise ValueError(
            f"{path} is not a usable checkpoint of {name}: {reason}. "
            "Delete the file to have the model trained again."
        ) from error
    return model.eval()


def _place(file: str) -> Path | None:
    """Where a file is, or can be written; ``None`` if nowhere."""
    try:
        path = cache_dir() / file
        made = next(each for each in (path, *path.absolute().parents) if each.exists())
    except (OSError, RuntimeError):
        return None
    return path if made == path or os.access(made, os.W_OK | os.X_OK) else None
