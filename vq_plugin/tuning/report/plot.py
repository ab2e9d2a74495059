"""What the page's template draws: charts as places, without any colour or font.

Places from left to right are percent of the plot's width and places from top to bottom are pixels:
so a chart grows and shrinks with the page while its text and marks keep their size. Labels of whole
charts are for those who cannot see them.
"""

from __future__ import annotations

from typing import NamedTuple

from vq_plugin.tuning.report.scales import Tick


class Mark(NamedTuple):
    """One point; the page gives each kind a shape and a colour."""

    x: float
    y: float
    kind: str
    title: str  # what a pointer resting on it shows
    chosen: bool
    whisker: tuple[float, float] | None  # ends of its interval, in pixels


class Band(NamedTuple):
    """A strip above the plot for marks that have no place in it."""

    top: float
    height: float
    label: str


class Plot(NamedTuple):
    """Loss against size."""

    label: str
    top: float  # of the area of the axes
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    line: list[tuple[float, float]]
    bands: list[Band]
    limit_at: float  # height of the budget's line
    limit_label: str


class Whisker(NamedTuple):
    """One row of the chart of intervals, in percent from the left."""

    name: str
    value: str  # what stands there in words
    at: float
    ends: tuple[float, float] | None


class WhiskerPlot(NamedTuple):
    """The losses against the budget."""

    label: str
    rows: list[Whisker]
    ticks: list[Tick]
    limit_at: float
    limit_label: str
