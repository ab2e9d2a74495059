"""From a YAML file to a checked recipe; every error says where and what to do."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError
from ruamel.yaml import YAML
from ruamel.yaml.comments import CommentedMap, CommentedSeq
from ruamel.yaml.error import MarkedYAMLError, YAMLError

from vq_plugin.recipe.problems import describe
from vq_plugin.recipe.schema import Recipe


class RecipeError(ValueError):
    """A recipe that cannot be used; every line of the message starts with ``file:line``."""


@dataclass(frozen=True)
class Source:
    """A recipe as its author wrote it; ``raw`` is its content with line numbers."""

    path: str
    raw: CommentedMap

    def line(self, location: Sequence[int | str]) -> int:
        """Line (from 1) of the deepest part of a location that the file has."""
        line, node = 1, self.raw
        for part in location:
            try:
                # A key that comes from a YAML merge (<<) has no line of its own.
                place = node.lc.item(part) if isinstance(node, CommentedSeq) else node.lc.key(part)
                node = node[part]
            except (AttributeError, KeyError, IndexError, TypeError):
                break
            line = place[0] + 1
        return line

    def value(self, location: Sequence[str]) -> object:
        """What stands at a location."""
        node: Any = self.raw
        for part in location:
            node = node[part]
        return node

    def problem(self, location: Sequence[int | str], text: str) -> str:
        """A problem as ``file:line: text``."""
        return f"{self.path}:{self.line(location)}: {text}"


def read_recipe(path: str | os.PathLike[str]) -> tuple[Recipe, Source]:
    """Reads and checks a recipe, without its functions and without the model.

    Args:
        path: A YAML 1.2 file.

    Returns:
        The recipe, and its source with the line numbers.

    Raises:
        FileNotFoundError: If there is no such file.
        RecipeError: If it is not YAML, or a key is unknown, given twice or of a wrong value; all
            problems at once.
    """
    try:
        text = Path(path).read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise RecipeError(f"{path}:1: not a text in UTF-8: {error.reason}") from None
    return parse_recipe(text, os.fspath(path))


def parse_recipe(text: str, path: str) -> tuple[Recipe, Source]:
    """As :func:`read_recipe`, from a text; ``path`` is for messages.

    Example:
        >>> parse_recipe("version: 2", "recipe.yaml")
        Traceback (most recent call last):
        vq_plugin.recipe.reading.RecipeError: recipe.yaml:1: version: expected 1, got 2
        recipe.yaml:1: key 'model' is missing; add for example 'model: my_package:model'
        recipe.yaml:1: key 'evaluation' is missing; add for example \
'evaluation: {tuning: my_package:evaluate}'
        recipe.yaml:1: key 'output' is missing; add for example 'output: runs/my_model'
    """
    source = Source(path, _load(text, path))
    try:
        return Recipe.model_validate(source.raw), source
    except ValidationError as error:
        items = sorted(error.errors(), key=lambda item: source.line(item["loc"]))
        problems = [source.problem(item["loc"], describe(item)) for item in items]
        raise RecipeError("\n".join(problems)) from None


def _load(text: str, path: str) -> CommentedMap:
    try:
        raw = YAML(typ="rt").load(text)
    except MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        line = mark.line + 1 if mark else 1
        problem = str(error.problem or error.context).splitlines()[0]
        advice = "; remove one of the two" if "duplicate key" in problem else ""
        raise RecipeError(f"{path}:{line}: {problem}{advice}") from None
    except (YAMLError, ValueError, RecursionError) as error:
        raise RecipeError(f"{path}:1: not YAML: {str(error).splitlines()[0]}") from None
    if not isinstance(raw, CommentedMap):
        raise RecipeError(
            f"{path}:1: a recipe is a mapping of keys such as 'model: my_package:model'"
        )
    return raw
