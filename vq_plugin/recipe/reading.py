"""From a YAML file to a checked recipe; every error says where and what to do."""

from __future__ import annotations

import difflib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap
from ruamel.yaml.error import MarkedYAMLError

from vq_plugin.recipe.schema import Recipe


class RecipeError(ValueError):
    """A recipe that cannot be used; the message starts with ``file:line``."""


def read_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, CommentedMap]:
    """Reads and checks a recipe.

    Args:
        path: A YAML 1.2 file.

    Returns:
        The recipe, and the raw mapping with its line numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        RecipeError: If it is not YAML, or a key is unknown, given twice or of a wrong value.
    """
    text = Path(path).read_text(encoding="utf-8")
    try:
        raw = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = str(error.problem or error.context).splitlines()[0]
        raise RecipeError(f"{path}:{line}: {problem}") from None
    if not isinstance(raw, CommentedMap):
        raise RecipeError(f"{path}:1: a recipe is a mapping of keys such as 'model:'")
    try:
        return Recipe.model_validate(raw), raw
    except ValidationError as error:
        problems = []
        for item in error.errors():
            where, what = item["loc"], _message(item["loc"], item["type"], item["msg"])
            problems.append(f"{path}:{line_of(raw, where)}: {what}")
        raise RecipeError("\n".join(problems)) from None


def line_of(raw: CommentedMap, location: Sequence[int | str]) -> int:
    """Line (from 1) of the deepest part of a location that the file has."""
    line, node = 1, raw
    for part in location:
        if not isinstance(node, CommentedMap) or part not in node:
            break
        line = node.lc.key(part)[0] + 1
        node = node[part]
    return line


def _message(location: Sequence[int | str], kind: str, text: str) -> str:
    key = ".".join(map(str, location)) or "recipe"
    if kind == "extra_forbidden":
        known = _known_keys(location[:-1])
        near = difflib.get_close_matches(str(location[-1]), known, n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        return f"unknown key {key!r}; {hint}known here: {', '.join(known)}"
    if kind == "missing":
        return f"key {key!r} is missing"
    return f"{key}: {text.removeprefix('Value error, ')}"


def _known_keys(location: Sequence[int | str]) -> list[str]:
    fields: Any = Recipe
    for part in location:
        if isinstance(fields, type) and issubclass(fields, BaseModel):
            annotation = fields.model_fields[str(part)].annotation
            arguments = getattr(annotation, "__args__", ())
            fields = next(
                (
                    a
                    for a in (annotation, *arguments)
                    if isinstance(a, type) and issubclass(a, BaseModel)
                ),
                annotation,
            )
    return list(fields.model_fields) if hasattr(fields, "model_fields") else []
