"""A recipe from its file to a compressed file and a report."""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from vq_plugin.recipe.prepare import Prepared, prepare
from vq_plugin.recipe.pruned import forget_pruned, pruned
from vq_plugin.tuning import Recovery, TuneResult, tune
from vq_plugin.tuning.result import MODEL_FILE, REPORT_FILE


@dataclass(frozen=True)
class Outcome:
    """What a run left behind; no compressed file if the budget was not reached."""

    result: TuneResult
    model_path: Path | None
    report_path: Path


def run_recipe(
    path: str | os.PathLike[str],
    output: str | os.PathLike[str] | None = None,
    *,
    workers: int = 1,
    backend: str = "loky",
) -> Outcome:
    """Runs a recipe: tunes, saves the model if the budget holds, writes the reports.

    A run that was killed goes on from where it was when it is started again.

    Args:
        path: The recipe.
        output: Folder for the results instead of the recipe's.
        workers: Fits and evaluations at a time, as in :func:`vq_plugin.tune`.
        backend: What runs them if there are several, as there.

    Returns:
        The outcome.

    Raises:
        RecipeError: If the recipe cannot be used.
        ValueError: As :func:`vq_plugin.tune`.
    """
    prepared = prepare(path)
    recipe, calibration = prepared.recipe, prepared.calibration
    folder = Path(output or recipe.output)
    start = None if recipe.pruning is None else pruned(prepared, folder)
    result = tune(
        prepared.model,
        prepared.evaluate,
        recipe.tuning.accuracy_criterion.budget(),
        None if calibration is None else calibration(),
        candidates=recipe.candidates(),
        test=prepared.test,
        max_trials=recipe.tuning.exit_policy.max_trials,
        timeout=recipe.tuning.exit_policy.timeout,
        seed=recipe.tuning.random_seed,
        workers=workers,
        backend=backend,
        start=start,
        recovery=_recovery(prepared),
        rest=recipe.rest,
        folder=folder,
        recipe=Path(path),
    )
    forget_pruned(folder)
    model_path = folder / MODEL_FILE if result.passed else None
    return Outcome(result, model_path, folder / REPORT_FILE)


def _recovery(prepared: Prepared) -> Recovery | None:
    keys = prepared.recipe.recovery
    if keys is None or prepared.recovery is None:
        return None
    return Recovery(
        prepared.recovery(), keys.epochs, keys.learning_rate, max_trials=keys.max_trials
    )
