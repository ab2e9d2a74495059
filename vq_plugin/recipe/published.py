"""The JSON Schema of recipes, for editors."""

from __future__ import annotations

from typing import Any

from vq_plugin.recipe.schema import Recipe


def json_schema() -> dict[str, Any]:
    """The JSON Schema of a recipe; ``docs/recipe.schema.json`` holds it.

    What :func:`vq_plugin.recipe.read_recipe` takes, it takes too. It cannot see what is wrong
    inside a scheme, nor what the model lacks.

    Example:
        >>> json_schema()["required"]
        ['version', 'model', 'evaluation', 'output']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **Recipe.model_json_schema(),
        "title": "vq_plugin recipe",
    }
