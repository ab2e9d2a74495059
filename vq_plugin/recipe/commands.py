"""The command line's ``recipe check``, ``recipe init`` and ``recipe schema``."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from vq_plugin.console import complain, say
from vq_plugin.recipe.prepare import prepare
from vq_plugin.recipe.reading import RecipeError
from vq_plugin.recipe.schema import json_schema
from vq_plugin.recipe.starter import write_starter

RIGHT, WRONG = 0, 2


def add_recipe_commands(commands: Any) -> None:
    """Adds ``recipe`` and its sub-commands to a parser's sub-commands."""
    recipe = commands.add_parser("recipe", help="check a recipe, start one, print the schema")
    actions = recipe.add_subparsers(required=True, metavar="ACTION")

    check = actions.add_parser(
        "check",
        help="find the mistakes in recipes without running them",
        description="Checks the keys, imports the functions, builds the model and checks the "
        "patterns against it. The model's function is called: where it trains or downloads, the "
        "check takes as long as that. Nothing is evaluated and nothing is compressed.",
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="YAML recipe")
    check.set_defaults(run=_check)

    init = actions.add_parser("init", help="write a commented recipe to start from")
    init.add_argument("file", nargs="?", default="recipe.yaml", type=Path, metavar="FILE")
    for name, returns in (
        ("model", "returns the trained float model"),
        ("evaluate", "returns a model's metric on the tuning split"),
        ("test", "returns a model's metric on an untouched split"),
        ("calibration", "returns unlabelled input batches"),
    ):
        init.add_argument(f"--{name}", metavar="MODULE:FUNCTION", help=f"function that {returns}")
    init.set_defaults(run=_init)

    schema = actions.add_parser("schema", help="print the JSON Schema of recipes, for editors")
    schema.set_defaults(run=_schema)


def _check(options: argparse.Namespace) -> int:
    status = RIGHT
    for file in options.files:
        try:
            prepared = prepare(file)
        except (RecipeError, OSError) as error:
            complain(str(error))
            status = WRONG
        else:
            say(f"{file}: right; {prepared}")
    return status


def _init(options: argparse.Namespace) -> int:
    write_starter(
        options.file,
        model=options.model,
        evaluate=options.evaluate,
        test=options.test,
        calibration=options.calibration,
    )
    say(f"{options.file}: written; check it with: vq-plugin recipe check {options.file}")
    return RIGHT


def _schema(_: argparse.Namespace) -> int:
    say(json.dumps(json_schema(), indent=2, ensure_ascii=False))
    return RIGHT
