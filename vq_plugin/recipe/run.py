"""A recipe from its file to a compressed file and a report."""

from __future__ import annotations

import importlib
import os
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ruamel.yaml.comments import CommentedMap
from torch import nn

from vq_plugin.checkpoint import save
from vq_plugin.recipe.reading import RecipeError, line_of, read_recipe
from vq_plugin.select import select
from vq_plugin.tuning import TuneResult, tune
from vq_plugin.tuning.report import write_report


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        result: The result of the search.
        model_path: The compressed file, or ``None`` if the budget was not reached.
        report_path: The report.
    """

    result: TuneResult
    model_path: Path | None
    report_path: Path


def resolve(reference: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names; modules beside the caller are found too.

    Raises:
        ValueError: If there is no such module or function.
    """
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{reference!r}: {error}") from error
    function = getattr(module, name, None)
    if not callable(function):
        raise ValueError(f"{reference!r}: module {module_name!r} has no function {name!r}")
    return function  # type: ignore[no-any-return]


def run_recipe(path: str | os.PathLike[str], output: str | None = None) -> Outcome:
    """Runs a recipe: tunes, saves the model if the budget holds, writes ``report.json``.

    Args:
        path: The recipe.
        output: Folder for the results instead of the recipe's.

    Returns:
        The outcome.

    Raises:
        RecipeError: If the recipe cannot be used.
        ValueError: As :func:`vq_plugin.tune`.
    """
    recipe, raw = read_recipe(path)
    build = _resolve_key(path, raw, recipe.model, ("model",))
    evaluate = _resolve_key(path, raw, recipe.evaluation.tuning, ("evaluation", "tuning"))
    test = calibration = None
    if recipe.evaluation.test is not None:
        test = _resolve_key(path, raw, recipe.evaluation.test, ("evaluation", "test"))
    if recipe.quantization.calibration is not None:
        key = ("quantization", "calibration")
        calibration = _resolve_key(path, raw, recipe.quantization.calibration, key)()
    model = build()
    if not isinstance(model, nn.Module):
        line = line_of(raw, ("model",))
        raise RecipeError(f"{path}:{line}: {recipe.model!r} returned {model!r}, not an nn.Module")
    _check_patterns(path, raw, model)
    folder = Path(output or recipe.output)
    folder.mkdir(parents=True, exist_ok=True)
    result = tune(
        model,
        evaluate,
        recipe.tuning.accuracy_criterion.budget(),
        calibration,
        candidates=recipe.candidates(),
        test=test,
        max_trials=recipe.tuning.exit_policy.max_trials,
        timeout=recipe.tuning.exit_policy.timeout,
        seed=recipe.tuning.random_seed,
    )
    model_path = folder / "model.vq" if result.passed else None
    # A file of an earlier run must not pass for the result of this one.
    (folder / "model.vq").unlink(missing_ok=True)
    if model_path is not None:
        save(result.model, model_path)
    report_path = folder / "report.json"
    write_report(report_path, result, model_path, recipe=os.fspath(path))
    return Outcome(result, model_path, report_path)


def _resolve_key(
    path: str | os.PathLike[str], raw: CommentedMap, reference: str, key: tuple[str, ...]
) -> Callable[..., Any]:
    try:
        return resolve(reference)
    except ValueError as error:
        raise RecipeError(f"{path}:{line_of(raw, key)}: {'.'.join(key)}: {error}") from error


def _check_patterns(path: str | os.PathLike[str], raw: CommentedMap, model: nn.Module) -> None:
    for name in raw.get("quantization", {}).get("op_wise", {}):
        try:
            select(model, {name: None})
        except ValueError as error:
            line = line_of(raw, ("quantization", "op_wise", name))
            raise RecipeError(f"{path}:{line}: {error}") from None
