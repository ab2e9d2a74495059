"""The result of a search for people and for pipelines.

One :class:`Report` holds the facts; ``report.json``, ``report.html`` and the terminal's table all
show the same one.
"""

from vq_plugin.tuning.report.content import REPORT_VERSION, Report, build_report
from vq_plugin.tuning.report.page import ReportPaths, render_page, write_report
from vq_plugin.tuning.report.text import format_result
from vq_plugin.tuning.report.written import json_schema

__all__ = [
    "REPORT_VERSION",
    "Report",
    "ReportPaths",
    "build_report",
    "format_result",
    "json_schema",
    "render_page",
    "write_report",
]
