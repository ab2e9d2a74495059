"""The sparse model of a run, made once however often the run is killed and started again."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from vq_plugin.atomic import write_atomically
from vq_plugin.factorize import factorize, remove_empty_channels
from vq_plugin.recipe.prepare import Prepared
from vq_plugin.recipe.reading import RecipeError
from vq_plugin.recipe.training import Factorization, Pruning
from vq_plugin.replace import assemble
from vq_plugin.training import prune, prune_factors
from vq_plugin.tuning.identity import model_digest

_log = logging.getLogger(__name__)

_NAME, _CHECKPOINT, _RUN = "pruned.safetensors", "pruning.safetensors", "run"


def pruned(prepared: Prepared, folder: Path) -> nn.Module | None:
    """The float model with the zeros that its recipe asks for, ``None`` if for none.

    Channels without a weight are gone. ``folder`` keeps it; ValueError if damaged.
    """
    recipe, model = prepared.recipe, prepared.model
    keys = recipe.pruning or recipe.factorization
    if keys is None:
        return None
    dense = _dense(prepared, keys)
    seed = recipe.tuning.random_seed
    run = json.dumps([model_digest(model), keys.model_dump(warnings=False), seed])
    path = folder / _NAME
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                same = file.metadata()[_RUN] == run
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to prune again") from error
        if same:
            sparse = assemble(dense, {})
            sparse.load_state_dict(state)
            return remove_empty_channels(sparse)
    sparse = _pruned(prepared, keys, dense, folder, seed)
    state = {name: t.detach().cpu().contiguous().clone() for name, t in sparse.state_dict().items()}
    write_atomically(path, to_safetensors(state, {_RUN: run}))
    return remove_empty_channels(sparse)


def _dense(prepared: Prepared, keys: Pruning | Factorization) -> nn.Module:
    """What zeros are made in: the model, or products in the places of its layers."""
    if isinstance(keys, Pruning):
        return prepared.model
    calibration = prepared.data("quantization", "calibration")
    try:
        return factorize(prepared.model, keys.factors(), calibration)
    except ValueError as error:
        text = f"factorization: {error}"
        raise RecipeError(prepared.source.problem(["factorization"], text)) from error


def _pruned(
    prepared: Prepared, keys: Pruning | Factorization, dense: nn.Module, folder: Path, seed: int
) -> nn.Module:
    key = "pruning" if isinstance(keys, Pruning) else "factorization"
    loader = prepared.data(key, "loader")
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("prune")
    training: dict[str, Any] = {
        "epochs": keys.epochs,
        "lr": keys.learning_rate,
        "seed": seed,
        "checkpoint": folder / _CHECKPOINT,
    }
    if isinstance(keys, Pruning):
        return prune(dense, loader, keys.sparsity, **training)
    return prune_factors(
        dense,
        loader,
        teacher=prepared.model,
        penalty=keys.penalty,
        deviations=keys.deviations,
        **training,
    )


def forget_pruned(folder: Path) -> None:
    """Removes the pruned model from a folder; the run has left its results."""
    (folder / _NAME).unlink(missing_ok=True)
