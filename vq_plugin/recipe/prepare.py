"""A recipe with its functions and its model: everything that can be checked before a search."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

from torch import nn

from vq_plugin.calibration import check_batches
from vq_plugin.nn import layer_types
from vq_plugin.raised import raised
from vq_plugin.recipe.problems import key_text
from vq_plugin.recipe.reading import RecipeError, Source, read_recipe
from vq_plugin.recipe.references import resolve
from vq_plugin.recipe.schema import Quantization, Recipe
from vq_plugin.recipe.training import Factorization, Factors, Recovery
from vq_plugin.select import Form, Pattern, check_model, match, slots_by_name
from vq_plugin.training.vectors import chosen_vectors
from vq_plugin.tuning.exports import ExportError, check_targets, expressible
from vq_plugin.tuning.space import search_space

Function = Callable[..., Any]


@dataclass(frozen=True)
class Prepared:
    """A recipe that is ready to run, with what its functions are, and schemes by layer name."""

    recipe: Recipe
    source: Source
    model: nn.Module
    functions: Mapping[str, Function]
    space: dict[str, tuple[Form | None, ...]]

    def data(self, *location: str) -> Any:
        """The batches that the function of a key returns, ``None`` without one.

        RecipeError if it raises, or returns nothing or a single batch.
        """
        function = self.functions.get(key_text(location))
        if function is None:
            return None
        found, reference = _called(function, self.source, location), self.source.value(location)
        if location == ("quantization", "calibration") and isinstance(found, Iterator):
            # It is read several times, and what it raises has its key.
            found = _called(partial(list, found), self.source, location)
        try:
            check_batches(found, f"{key_text(location)}: what {reference!r} returns")
        except (TypeError, ValueError) as error:
            raise RecipeError(self.source.problem(location, str(error))) from None
        return found

    def __str__(self) -> str:
        searched = sum(len(schemes) > 1 for schemes in self.space.values())
        left = list(self.space.values()).count((None,))
        fixed = len(self.space) - searched - left
        layers = "layer" if searched == 1 else "layers"
        return f"{searched} {layers} to search, {fixed} fixed, {left} left"


def prepare(path: str | os.PathLike[str], model: nn.Module | None = None) -> Prepared:
    """Reads a recipe, finds its functions, builds its model (if not given) and checks its patterns.

    What cannot be found is reported before the model is built, which may take long: a
    FileNotFoundError, or a RecipeError with all problems of the first step that has any.
    """
    recipe, source = read_recipe(path)
    functions = _functions(recipe, source)
    with export_errors(source):
        check_targets(recipe.export)
        if recipe.export and recipe.quantization.calibration is None:
            raise ExportError("needs quantization.calibration: its first batch is the example")
    if model is None:
        model = _build(functions["model"], source)
    space = _space(recipe, source, model)
    _check_learned(recipe, source, model, space)
    with export_errors(source):
        space = expressible(model, space, recipe.export)
    return Prepared(recipe=recipe, source=source, model=model, functions=functions, space=space)


@contextmanager
def export_errors(source: Source) -> Iterator[None]:
    """Has errors of the key ``export`` its file and line."""
    try:
        yield
    except ExportError as error:
        raise RecipeError(source.problem(["export"], f"export: {error}")) from error


def _functions(recipe: Recipe, source: Source) -> dict[str, Function]:
    references = {
        ("model",): recipe.model,
        ("quantization", "calibration"): recipe.quantization.calibration,
        ("pruning", "loader"): recipe.pruning.loader if recipe.pruning else None,
        ("factorization", "loader"): (
            recipe.factorization.loader if recipe.factorization else None
        ),
        ("recovery", "loader"): recipe.recovery.loader if recipe.recovery else None,
        ("evaluation", "tuning"): recipe.evaluation.tuning,
        ("evaluation", "test"): recipe.evaluation.test,
    }
    functions, problems = {}, []
    for location, reference in references.items():
        if reference is None:
            continue
        key = key_text(location)
        try:
            functions[key] = resolve(reference, 1 if location[0] == "evaluation" else 0)
        except ValueError as error:
            problems.append(source.problem(location, f"{key}: {error}"))
    _raise(problems)
    return functions


def _build(function: Function, source: Source) -> nn.Module:
    model: Any = _called(function, source, ["model"])
    try:
        check_model(model)
    except TypeError as error:
        text = f"model: {source.raw['model']!r} returned no model: {error}"
        raise RecipeError(source.problem(["model"], text)) from None
    assert isinstance(model, nn.Module)
    return model


def _called(function: Function, source: Source, location: Sequence[str]) -> object:
    """What a function of the user returns; a RecipeError has its key, file and line."""
    try:
        return function()
    except Exception as error:
        reference = source.value(location)
        text = f"{key_text(location)}: {reference!r} {raised(error)}"
        raise RecipeError(source.problem(location, text)) from error


def _space(recipe: Recipe, source: Source, model: nn.Module) -> dict[str, tuple[Form | None, ...]]:
    """The schemes of every layer, once each pattern is known to match something."""
    problems = []
    for location, choice in _rules(recipe):
        key, section, name = location
        pattern: Pattern = layer_types()[name] if section == "optype_wise" else name
        try:
            match(model, [pattern], [pattern] if choice is None else [])
        except ValueError as error:
            problems.append(source.problem(location, f"{key}.{section}: {error}"))
    _raise(problems)
    try:
        return search_space(model, recipe.candidates())
    except ValueError as error:
        raise RecipeError(source.problem(["quantization"], f"quantization: {error}")) from None


def _rules(recipe: Recipe) -> Iterator[tuple[tuple[str, str, str], object]]:
    """Where layers are named, by name or type, and what is to become of them."""
    for key in ("quantization", "factorization", "recovery"):
        keys: Quantization | Factorization | Recovery | None = getattr(recipe, key)
        if keys is None:
            continue
        for section, layers in ("op_wise", keys.op_wise), ("optype_wise", keys.optype_wise):
            for name, each in layers.items():
                choice = each.factor if isinstance(each, Factors) else each.scheme
                yield (key, section, name), choice


def _check_learned(
    recipe: Recipe,
    source: Source,
    model: nn.Module,
    space: Mapping[str, tuple[Form | None, ...]],
) -> None:
    """RecipeError if layers are to learn what does not learn.

    Those of products are not known before these are made.
    """
    if recipe.recovery is None or recipe.factorization is not None:
        return
    coded = [name for name, forms in space.items() if any(forms)]
    try:
        chosen_vectors(model, slots_by_name(model, coded).values(), recipe.recovery.schemes())
    except ValueError as error:
        raise RecipeError(source.problem(["recovery"], f"recovery: {error}")) from None


def _raise(problems: Sequence[str]) -> None:
    if problems:
        raise RecipeError("\n".join(problems))
