"""``vq-plugin recipe check``, ``recipe init`` and ``recipe schema``."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from vq_plugin.commands.command import BAD_INPUT, PLAIN, WITHIN_BUDGET, add_command, as_json
from vq_plugin.console import complain, say
from vq_plugin.workloads.recipes import NAMES


def add_recipe(commands: Any) -> None:
    """Adds ``recipe`` and its sub-commands to a parser's sub-commands."""
    recipe = commands.add_parser("recipe", help="check a recipe, start one, print the schema")
    actions = recipe.add_subparsers(required=True, metavar="ACTION")

    check = add_command(
        actions,
        "check",
        _check,
        summary="find the mistakes in recipes without running them",
        description="Checks the keys, imports the functions, builds the model and checks the "
        "patterns against it.\nThe model's function is called: where it trains or downloads, the "
        "check takes as long as that.\nNothing is evaluated and nothing is compressed.",
        example="vq-plugin recipe check recipe.yaml",
        codes={**PLAIN, WITHIN_BUDGET: "all recipes are right"},
    )
    check.add_argument("files", nargs="+", metavar="FILE", help="YAML recipe")

    init = add_command(
        actions,
        "init",
        _init,
        summary="write a recipe to start from",
        description="Writes a commented recipe to start from, or a copy of one that comes with "
        "the package and runs as it is.",
        example="vq-plugin recipe init --from digits && vq-plugin tune digits.yaml",
    )
    init.add_argument(
        "file", nargs="?", type=Path, metavar="FILE", help="recipe.yaml, or NAME.yaml of --from"
    )
    init.add_argument(
        "--from",
        dest="shipped",
        choices=NAMES,
        metavar="NAME",
        help=f"one that comes with the package: {', '.join(NAMES)}",
    )
    for name, returns in (
        ("model", "returns the trained float model"),
        ("evaluate", "returns a model's metric on the tuning split"),
        ("test", "returns a model's metric on an untouched split"),
        ("calibration", "returns unlabelled input batches"),
    ):
        init.add_argument(f"--{name}", metavar="MODULE:FUNCTION", help=f"function that {returns}")

    add_command(
        actions,
        "schema",
        _schema,
        summary="print the JSON Schema of recipes, for editors",
        example="vq-plugin recipe schema > recipe.schema.json",
    )


def _check(options: argparse.Namespace) -> int:
    from vq_plugin.recipe.prepare import prepare
    from vq_plugin.recipe.reading import RecipeError

    status = WITHIN_BUDGET
    for file in options.files:
        try:
            prepared = prepare(file)
        except (RecipeError, OSError) as error:
            complain(str(error))
            status = BAD_INPUT
        else:
            say(f"{file}: right; {prepared}")
    return status


def _init(options: argparse.Namespace) -> int:
    from vq_plugin.recipe.starter import write_shipped, write_starter

    names = ("model", "evaluate", "test", "calibration")
    functions = {name: getattr(options, name) for name in names}
    if options.shipped is None:
        path = options.file or Path("recipe.yaml")
        write_starter(path, **functions)
    else:
        if given := [f"--{name}" for name in names if functions[name] is not None]:
            raise ValueError(f"--from has functions already: leave {given[0]} out, or --from")
        path = options.file or Path(f"{options.shipped}.yaml")
        write_shipped(path, options.shipped)
    say(f"{path}: written; check it with: vq-plugin recipe check {path}")
    return WITHIN_BUDGET


def _schema(_: argparse.Namespace) -> int:
    from vq_plugin.recipe.schema import json_schema

    say(as_json(json_schema()))
    return WITHIN_BUDGET
