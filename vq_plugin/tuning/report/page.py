"""The report as one self-contained page."""

from __future__ import annotations

from functools import cache

from jinja2 import Environment, PackageLoader, StrictUndefined

from vq_plugin.table import format_bytes
from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.charts import interval_chart, tradeoff_chart
from vq_plugin.tuning.report.content import Report

_ARROW = "→"
# Keeps a number and its percent sign on one line.
_NARROW = "\N{NARROW NO-BREAK SPACE}"


def render_page(report: Report) -> str:
    """The HTML of a report: it loads nothing and runs no script.

    Args:
        report: The facts.

    Returns:
        The page.
    """
    return (
        _environment()
        .get_template("page.html.jinja")
        .render(
            report=report,
            result=report.result,
            budget=report.result.budget,
            sentences=[
                sentence.replace(" %", _NARROW + "%")
                for sentence in wording.verdict_sentences(report, _ARROW)
            ],
            changes=wording.change_texts(report.result, _ARROW, most=3),
            tradeoff=tradeoff_chart(report),
            intervals=interval_chart(report),
        )
    )


@cache
def _environment() -> Environment:
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
    return environment
