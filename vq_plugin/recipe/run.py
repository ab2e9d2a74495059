"""A recipe from its file to a compressed file and a report."""

from __future__ import annotations

import logging
import os
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from vq_plugin.calibration import CalibrationError
from vq_plugin.recipe.prepare import Prepared, export_errors, prepare
from vq_plugin.recipe.problems import key_text
from vq_plugin.recipe.pruned import forget_pruned, pruned
from vq_plugin.recipe.reading import RecipeError, Source, read_recipe
from vq_plugin.recipe.schema import Recipe
from vq_plugin.tuning import Learning, Recovery, TuneResult, tune
from vq_plugin.tuning.direction import DirectionError
from vq_plugin.tuning.hosts import Host, find_host
from vq_plugin.tuning.result import MODEL_FILE, REPORT_FILE
from vq_plugin.tuning.trials import BaselineError
from vq_plugin.tuning.watch import Callback

_log = logging.getLogger(__name__)


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
    callback: Callback | None = None,
) -> Outcome:
    """Runs a recipe: tunes, saves the model if the budget holds, writes the reports.

    A run that was killed goes on from where it was when it is started again.

    Args:
        path: The recipe.
        output: Folder for the results instead of the recipe's. It may be anywhere; that of a recipe
            is in the current folder.
        workers: Fits and evaluations at a time, as in :func:`vq_plugin.tune`.
        backend: What runs them if there are several, as there.
        callback: Called with every trial, as there.

    Returns:
        The outcome.

    Raises:
        RecipeError: If the recipe cannot be used.
        ValueError: As :func:`vq_plugin.tune`.
    """
    if output is None:
        # Before the model is built, which may take long.
        output = _inside(*read_recipe(path))
    _log.info("build the model")
    prepared, folder = prepare(path), Path(output)
    recipe, source = prepared.recipe, prepared.source
    start = pruned(prepared, folder)
    try:
        with export_errors(source):
            result = tune(
                prepared.model,
                prepared.functions["evaluation.tuning"],
                recipe.tuning.accuracy_criterion.budget(),
                prepared.data("quantization", "calibration"),
                candidates=recipe.candidates(),
                test=prepared.functions.get("evaluation.test"),
                max_trials=recipe.tuning.exit_policy.max_trials,
                timeout=recipe.tuning.exit_policy.timeout,
                seed=recipe.tuning.random_seed,
                workers=workers,
                backend=backend,
                start=start,
                recovery=_recovery(prepared),
                rest=recipe.rest,
                host=_host(prepared),
                folder=folder,
                export=recipe.export,
                recipe=Path(path),
                callback=callback,
            )
    except BaselineError as error:
        location = ("evaluation", "tuning" if error.name == "evaluate" else "test")
        text = f"{key_text(location)}: {source.value(location)!r} of the float model: "
        raise RecipeError(source.problem(location, text + error.reason)) from error
    except CalibrationError as error:
        location = ("quantization", "calibration")
        text = f"{key_text(location)}: {source.value(location)!r}: {error}"
        raise RecipeError(source.problem(location, text)) from error
    except DirectionError as error:
        value = str(error.other).lower()
        text = error.told(f"set tuning.accuracy_criterion.higher_is_better: {value}")
        location = ("evaluation", "tuning")
        raise RecipeError(source.problem(location, f"{key_text(location)}: {text}")) from error
    forget_pruned(folder)
    model_path = folder / MODEL_FILE if result.passed else None
    return Outcome(result, model_path, folder / REPORT_FILE)


def is_outside(output: str) -> bool:
    """Whether a folder is not in the current one, where recipes of others may write."""
    return not Path(output).resolve().is_relative_to(Path.cwd().resolve())


def _inside(recipe: Recipe, source: Source) -> str:
    """The recipe's folder; RecipeError if it is outside of the current one."""
    if is_outside(recipe.output):
        text = f"output: {recipe.output!r} is outside of the current folder"
        remedy = f"if that is meant, give it yourself: --output {shlex.quote(recipe.output)}"
        raise RecipeError(source.problem(["output"], f"{text}; {remedy}"))
    return recipe.output


def _host(prepared: Prepared) -> Host | None:
    name = prepared.recipe.host
    try:
        return None if name is None else find_host(name)
    except ImportError as error:
        raise RecipeError(prepared.source.problem(["host"], f"host: {error}")) from error


def _recovery(prepared: Prepared) -> Recovery | None:
    keys = prepared.recipe.recovery
    if keys is None:
        return None
    kind = {"finetune": Recovery, "learn": Learning}[keys.method]
    values = {
        "epochs": keys.epochs, "lr": keys.learning_rate, "max_trials": keys.max_trials,
        "schemes": keys.schemes(),
    }  # fmt: skip
    given: dict[str, Any] = {name: value for name, value in values.items() if value is not None}
    return kind(prepared.data("recovery", "loader"), **given)
