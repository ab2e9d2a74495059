"""Rows that a run has measured: one that was killed goes on after the last of them."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

Row = dict[str, Any]


class Journal:
    """Rows by what they are of, in a file of one JSON text a line.

    Each has the processor time since the one before it, or since the journal was opened, which all
    that led to it is in; so what a table costs is known of runs that were killed, too.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._since = time.process_time()
        self.rows: dict[str, Row] = {}
        if path.exists():
            for line in path.read_text(encoding="utf-8").splitlines():
                try:
                    row = json.loads(line)
                except ValueError:  # cut off as it was written
                    continue
                self.rows[row["key"]] = row

    def add(self, key: str, row: Row) -> None:
        """Keeps a row."""
        now = time.process_time()
        self.rows[key] = {"key": key, **row, "seconds": now - self._since}
        self._since = now
        self.path.parent.mkdir(parents=True, exist_ok=True)
        before = self.path.read_text(encoding="utf-8") if self.path.exists() else ""
        if before and not before.endswith("\n"):
            before += "\n"
        self.path.write_text(before + json.dumps(self.rows[key]) + "\n", encoding="utf-8")

    def measured(self, named: Row, measure: Callable[[], Row]) -> Row:
        """The row of what is named, measured unless it is known, and said as soon as it is."""
        key = " ".join(map(str, named.values()))
        if key not in self.rows:
            row = measure()
            self.add(key, {**named, **row})
            print(key, {name: round(value, 2) for name, value in row.items()}, flush=True)
        return self.rows[key]

    @property
    def minutes(self) -> float:
        """Of processor time, for all rows."""
        return sum(row["seconds"] for row in self.rows.values()) / 60
