"""Puts the output of the last runs into docs/benchmarks.md.

python -m integration.benchmarks.publish [--runs runs/benchmarks]

Between ``<!-- NAME -->`` and ``<!-- end NAME -->`` goes what the run of that name printed; a run
that is missing leaves its place as it is, one of ``--quick`` is refused. A run without a place is
named.
"""

from __future__ import annotations

import argparse
import json
import re
from pathlib import Path

_PAGE = Path("docs/benchmarks.md")


def publish(page: str, runs: Path) -> str:
    """The page with every run that is there in its place."""

    def block(match: re.Match[str]) -> str:
        name = match[1]
        path = runs / f"{name}.json"
        if not path.exists():
            print(f"{path} is missing: {name} stays as it is")
            return match[0]
        result = json.loads(path.read_text())
        if result["settings"]["quick"]:
            raise SystemExit(f"{path} is from --quick: run it without")
        return f"<!-- {name} -->\n```text\n{result['printed']}\n```\n<!-- end {name} -->"

    for path in sorted(runs.glob("*.json")):
        if f"<!-- {path.stem} -->\n" not in page:
            print(
                f"{path} has no place: put <!-- {path.stem} --> and <!-- end {path.stem} --> there"
            )
    return re.sub(r"<!-- (\w+) -->\n.*?<!-- end \1 -->", block, page, flags=re.DOTALL)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=Path, default=Path("runs/benchmarks"))
    _PAGE.write_text(publish(_PAGE.read_text(), parser.parse_args().runs))
