"""The two files of a report."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import NamedTuple

from vq_plugin.atomic import write_atomically
from vq_plugin.tuning.report.content import build_report
from vq_plugin.tuning.report.page import render_page
from vq_plugin.tuning.report.written import as_json
from vq_plugin.tuning.result import PAGE_FILE, REPORT_FILE, TuneResult


class ReportPaths(NamedTuple):
    """Where a report was written.

    Attributes:
        json: ``report.json``, for pipelines.
        page: ``report.html``, for people.
    """

    json: Path
    page: Path


def write_report(
    folder: str | os.PathLike[str],
    result: TuneResult,
    model_path: Path | None = None,
    *,
    recipe: Path | None = None,
) -> ReportPaths:
    """Writes ``report.json`` and ``report.html``, each in one atomic step.

    Args:
        folder: Where to; it is made if it does not exist, older reports in it are replaced.
        result: The result of the search.
        model_path: The compressed file, or ``None`` if none was written.
        recipe: The recipe of the run; its text goes into both files.

    Returns:
        The paths of the two files.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    report = build_report(result, model_path, recipe=recipe)
    paths = ReportPaths(folder / REPORT_FILE, folder / PAGE_FILE)
    text = json.dumps(as_json(report), indent=2, ensure_ascii=False, allow_nan=False)
    write_atomically(paths.json, f"{text}\n".encode())
    write_atomically(paths.page, render_page(report).encode())
    return paths
