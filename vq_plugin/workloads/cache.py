"""Where trained checkpoints live, so that each model is trained once per machine."""

import sys
from collections.abc import Callable
from typing import TypeVar

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import nn

from vq_plugin.atomic import write_atomically
from vq_plugin.user_cache import cache_dir

M = TypeVar("M", bound=nn.Module)


def trained(name: str, model: M, train: Callable[[M], object]) -> M:
    """`model` with the weights kept under `name`, trained if need be; ValueError if corrupt."""
    path = cache_dir() / f"{name}.safetensors"
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
