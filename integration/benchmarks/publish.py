"""Puts the last runs into docs/benchmarks, and makes tables and pictures of the pages anew.

python -m integration.benchmarks.publish [--runs runs/benchmarks]

What a run printed becomes docs/benchmarks/NAME.txt. Only runs that have such a file are taken: a
new one begins with an empty file. One of ``--quick`` is refused.
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Mapping
from pathlib import Path

from integration.benchmarks.published import FOLDER
from integration.benchmarks.summaries import SUMMARIES

_ROOT = FOLDER.parents[1]
#: Pages with tables of the runs.
PAGES = (FOLDER.with_suffix(".md"), _ROOT / "docs" / "choosing.md", _ROOT / "README.md")


def take(runs: Path, folder: Path) -> None:
    """Copies what the runs printed; a run that is missing leaves its file as it is."""
    for path in sorted(runs.glob("*.json")):
        target = folder / f"{path.stem}.txt"
        if not target.exists():
            print(f"{path} has no place: make an empty {target}")
            continue
        result = json.loads(path.read_text(encoding="utf-8"))
        if result["settings"]["quick"]:
            raise SystemExit(f"{path} is from --quick: run it without")
        target.write_text(f"{result['printed']}\n", encoding="utf-8")


def with_tables(page: str, tables: Mapping[str, Callable[[], str]]) -> str:
    """The page with every table between ``<!-- NAME -->`` and ``<!-- end NAME -->`` made anew."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        return f"<!-- {name} -->\n{tables[name]()}\n<!-- end {name} -->"

    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end \1 -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    from integration.benchmarks.pictures import PICTURES, svg

    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    take(parser.parse_args().runs, FOLDER)
    for name, draw in PICTURES.items():
        (FOLDER / f"{name}.svg").write_text(svg(draw), encoding="utf-8")
    for page in PAGES:
        page.write_text(with_tables(page.read_text(encoding="utf-8"), SUMMARIES), encoding="utf-8")
