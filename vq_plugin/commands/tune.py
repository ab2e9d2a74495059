"""``vq-plugin tune``: a recipe's smallest model within its budget."""

from __future__ import annotations

import argparse
import sys
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from vq_plugin.commands.command import NOT_REACHED, PLAIN, WITHIN_BUDGET, add_command, add_json
from vq_plugin.console import complain, say
from vq_plugin.table import printable

if TYPE_CHECKING:
    from vq_plugin.recipe.run import Outcome
    from vq_plugin.tuning.tracking import TrackedRun


def add_tune(commands: Any) -> None:
    """Adds ``tune`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "tune",
        _tune,
        summary="find the smallest setting within a loss budget",
        example="vq-plugin tune recipe.yaml --output runs/release",
        codes={**PLAIN, WITHIN_BUDGET: "within the budget", NOT_REACHED: "budget not reached"},
        reads="recipe",
    )
    parser.add_argument("recipe", metavar="RECIPE", help="YAML recipe")
    parser.add_argument("--output", metavar="DIR", help="folder for the results, not the recipe's")
    parser.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="fits and evaluations at a time, each in a process of its own (default 1: this one)",
    )
    parser.add_argument(
        "--backend",
        default="loky",
        help="what runs the workers: loky (processes of this machine), dask, or any of joblib's",
    )
    parser.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask scheduler, such as tcp://10.0.0.5:8786; without it, --backend dask starts "
        "N workers on this machine",
    )
    parser.add_argument(
        "--mlflow",
        metavar="EXPERIMENT",
        help="log the run to this experiment of MLflow; MLFLOW_TRACKING_URI says where",
    )
    add_json(parser)


def _tune(options: argparse.Namespace) -> int:
    if options.scheduler is not None and options.backend != "dask":
        raise ValueError("--scheduler needs --backend dask")
    if options.output == "":
        # A variable of a pipeline that is not set: the release would go to the current folder.
        raise ValueError("--output is empty; the current folder is --output .")
    from vq_plugin.recipe import run_recipe
    from vq_plugin.tuning.cluster import dask_cluster
    from vq_plugin.tuning.report import format_result
    from vq_plugin.tuning.tracking import TrackedRun, ensure_experiment

    cluster: AbstractContextManager[None] = nullcontext()
    tracked: AbstractContextManager[TrackedRun | None] = nullcontext()
    if options.mlflow is not None:
        # What would keep the run from being tracked shows before the search, not after it.
        ensure_experiment(options.mlflow)
        tracked = TrackedRun(Path(options.recipe).stem, options.mlflow)
    if options.backend == "dask":
        cluster = dask_cluster(options.workers, options.scheduler)
    with cluster, tracked as run:
        outcome = run_recipe(
            options.recipe,
            _agreed(options.recipe) if options.output is None else options.output,
            workers=options.workers,
            backend=options.backend,
            callback=None if run is None else run.trial,
        )
    if options.json:
        say(outcome.report_path.read_text(encoding="utf-8").rstrip())
    else:
        say(format_result(outcome.result, outcome.model_path))
        say(f"report: {outcome.report_path.with_suffix('.html')}")
    if run is not None:
        _finish(run, outcome, options)
    return WITHIN_BUDGET if outcome.result.passed else NOT_REACHED


def _agreed(path: str) -> str | None:
    """The recipe's folder, if it is outside of the current one and who is there agrees."""
    from vq_plugin.recipe import read_recipe
    from vq_plugin.recipe.run import is_outside

    output = read_recipe(path)[0].output
    if not is_outside(output) or sys.stdin is None or not sys.stdin.isatty():
        return None
    folder = printable(str(Path(output).resolve()))
    reply = input(f"The recipe writes to {folder}, outside of the current folder. Go on? [y/N] ")
    return output if reply.strip().lower() in ("y", "yes") else None


def _finish(run: TrackedRun, outcome: Outcome, options: argparse.Namespace) -> None:
    from vq_plugin.tuning.tracking import TrackingError

    folder = outcome.report_path.parent
    try:
        run_id = run.finish(outcome.result, folder=folder, recipe=Path(options.recipe))
    except TrackingError as error:
        # The gate is the verdict: a server that is away does not stop a release.
        complain(f"vq-plugin: warning: {error}")
    else:
        # Beside JSON there is nothing else on standard output.
        tell = complain if options.json else say
        tell(f"mlflow: run {run_id} of experiment {run.experiment!r}")
