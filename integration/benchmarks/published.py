"""What the published runs printed: docs/benchmarks/NAME.txt, read back as tables."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[2] / "docs" / "benchmarks"
_GAP = re.compile(r" {2,}")

Row = dict[str, str]


@dataclass(frozen=True)
class Published:
    """One run.

    Attributes:
        name: Name of its benchmark.
        text: What it printed.
    """

    name: str
    text: str

    def table(self, title: str) -> list[Row]:
        """The rows of the first table whose title starts so, cells as they were printed."""
        _, found, rest = self.text.partition(f"## {title}")
        if not found:
            raise ValueError(f"{self.name}.txt has no table that begins with {title!r}")
        lines = rest.splitlines()[1:]
        end = next((i for i, line in enumerate(lines) if not line or line.startswith("note")), None)
        header, _, *body = lines[:end]
        columns = list(_columns([header, *body]))
        names = [header[column].strip() for column in columns]
        return [
            dict(zip(names, (line[column].strip() for column in columns), strict=True))
            for line in body
        ]

    @property
    def machine(self) -> str:
        """Where and when it ran, in a few words."""
        facts = dict(re.findall(r"(?:^|, )(date|cpu|torch threads) ([^,]+)", self._last_line))
        threads = facts["torch threads"]
        return f"{facts['cpu']}, {threads} thread{'s' * (threads != '1')}, {facts['date']}"

    @property
    def _last_line(self) -> str:
        return self.text.splitlines()[-1]


def published(name: str) -> Published:
    """A published run by the name of its benchmark."""
    return Published(name, (FOLDER / f"{name}.txt").read_text(encoding="utf-8"))


def _columns(lines: list[str]) -> Iterator[slice]:
    """Columns stand two spaces apart, and none of their names has two in a row."""
    width = max(map(len, lines))
    used = [any(line[i : i + 1].strip() for line in lines) for i in range(width)]
    marks = "".join("x" if mark else " " for mark in used)
    start = 0
    for gap in _GAP.finditer(marks):
        yield slice(start, gap.start())
        start = gap.end()
    yield slice(start, width)
