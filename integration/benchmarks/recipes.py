"""Every recipe of the project, run to the end as a user runs it.

python -m integration.benchmarks.recipes [--only digits ...] [--quick]

Losses are relative to the float model's metric, unless the recipe's budget is absolute.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path

from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from vq_plugin.cli import WITHIN_BUDGET
from vq_plugin.cli import main as vq_plugin

_RECIPES = Path("recipes")
_QUICK = ("digits",)


def run(path: Path, folder: Path) -> dict[str, object]:
    """Runs one recipe; what its report says."""
    start = time.perf_counter()
    status = vq_plugin(["tune", str(path), "--output", str(folder)])
    seconds = time.perf_counter() - start
    report = json.loads((folder / "report.json").read_text())
    result = report["result"]
    return {
        "recipe": path.stem,
        "exit code": status,
        "file bytes": report["sizes"]["file_nbytes"],
        "file rate": report["sizes"]["file_rate"],
        "evaluations": len(result["trials"]),
        "loss (tuning)": result["loss"],
        "loss (test)": result["test_loss"],
        "seconds": seconds,
    }


def main() -> None:
    arguments = parse_arguments(__doc__ or "", _options)
    names = arguments.only or (_QUICK if arguments.quick else None)
    paths = [p for p in sorted(_RECIPES.glob("*.yaml")) if names is None or p.stem in names]
    report = Report("recipes", {"quick": arguments.quick, "recipes": [p.stem for p in paths]})
    table = Table(
        "Recipes, as they run with vq-plugin tune",
        {
            "recipe": "", "exit code": "d", "file bytes": "d", "file rate": ".1f",
            "evaluations": "d", "loss (tuning)": ".4f", "loss (test)": ".4f", "seconds": ".0f",
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        for path in paths:
            row = run(path, Path(folder) / path.stem)
            table.rows.append(row)
            label = f"exit code of {path.name}"
            report.checks.append(Check(label, float(str(row["exit code"])), WITHIN_BUDGET))
    report.add(table)
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", nargs="+", metavar="NAME", help="recipes by file name")


if __name__ == "__main__":
    main()
