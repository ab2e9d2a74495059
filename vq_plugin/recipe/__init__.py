"""YAML recipes: what to compress, on which data, within which budget."""

from vq_plugin.recipe.reading import RecipeError, read_recipe
from vq_plugin.recipe.run import run_recipe
from vq_plugin.recipe.schema import Recipe, json_schema

__all__ = ["Recipe", "RecipeError", "json_schema", "read_recipe", "run_recipe"]
