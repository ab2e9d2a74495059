"""The pruned model of a run, made once however often the run is killed and started again."""

from __future__ import annotations

import json
import logging
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import nn

from vq_plugin.atomic import write_atomically
from vq_plugin.recipe.prepare import Prepared
from vq_plugin.replace import assemble
from vq_plugin.training import prune
from vq_plugin.tuning.identity import model_digest

_log = logging.getLogger(__name__)

_NAME, _CHECKPOINT, _RUN = "pruned.safetensors", "pruning.safetensors", "run"


def pruned(prepared: Prepared, folder: Path) -> nn.Module:
    """The float model, pruned as its recipe says; ``folder`` keeps it, ValueError if damaged."""
    keys = prepared.recipe.pruning
    assert keys is not None
    model, seed = prepared.model, prepared.recipe.tuning.random_seed
    run = json.dumps([model_digest(model), keys.model_dump(), seed])
    path = folder / _NAME
    if path.exists():
        try:
            with safe_open(path, "pt") as file:
                same = file.metadata()[_RUN] == run
                state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        except (SafetensorError, TypeError, KeyError) as error:
            raise ValueError(f"{path} is damaged ({error}): delete it to prune again") from error
        if same:
            sparse = assemble(model, {})
            sparse.load_state_dict(state)
            return sparse
    loader = prepared.data("pruning", "loader")
    folder.mkdir(parents=True, exist_ok=True)
    _log.info("prune")
    sparse = prune(
        model,
        loader,
        keys.sparsity,
        epochs=keys.epochs,
        lr=keys.learning_rate,
        seed=seed,
        checkpoint=folder / _CHECKPOINT,
    )
    state = {name: t.detach().cpu().contiguous().clone() for name, t in sparse.state_dict().items()}
    write_atomically(path, to_safetensors(state, {_RUN: run}))
    return sparse


def forget_pruned(folder: Path) -> None:
    """Removes the pruned model from a folder; the run has left its results."""
    (folder / _NAME).unlink(missing_ok=True)
