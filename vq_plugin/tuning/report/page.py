"""The report as one self-contained page, and the two files of a report."""

from __future__ import annotations

import json
import os
from functools import cache
from pathlib import Path
from typing import NamedTuple

from jinja2 import Environment, PackageLoader, StrictUndefined, Template

from vq_plugin.atomic import write_atomically
from vq_plugin.table import format_bytes
from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.charts import interval_chart, tradeoff_chart
from vq_plugin.tuning.report.content import Report, build_report
from vq_plugin.tuning.report.written import as_json
from vq_plugin.tuning.result import PAGE_FILE, REPORT_FILE, TuneResult

_ARROW = "→"
# Keeps a number and its percent sign on one line.
_NARROW = "\N{NARROW NO-BREAK SPACE}"


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


def render_page(report: Report) -> str:
    """The HTML of a report: it loads nothing and runs no script.

    Args:
        report: The facts.

    Returns:
        The page.
    """
    sentences = wording.verdict_sentences(report, _ARROW)
    return _template().render(
        report=report,
        result=report.result,
        budget=report.result.budget,
        sentences=[sentence.replace(" %", _NARROW + "%") for sentence in sentences],
        changes=list(wording.change_texts(report.result, _ARROW, most=3)),
        tradeoff=tradeoff_chart(report.result),
        intervals=interval_chart(report),
    )


@cache
def _template() -> Template:
    environment = Environment(
        loader=PackageLoader("vq_plugin.tuning.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals["words"] = wording
    environment.filters["bits"] = wording.bits_in_file
    environment.filters["bytes"] = format_bytes
    return environment.get_template("page.html.jinja")
