"""What the page's template draws: charts as places, without any colour or font.

Places from left to right are percent of the plot's width and places from top to bottom are pixels:
so a chart grows and shrinks with the page while its text and marks keep their size.
"""

from __future__ import annotations

from dataclasses import dataclass, field

from vq_plugin.tuning.report.scales import Tick


@dataclass(frozen=True)
class Mark:
    """One point.

    Attributes:
        x: Percent from the left.
        y: Pixels from the top.
        kind: What it stands for; the page gives each kind a shape and a colour.
        title: What a pointer resting on it shows.
        chosen: Whether it is the chosen one.
        whisker: Ends of its interval in pixels from the top, or ``None``.
    """

    x: float
    y: float
    kind: str
    title: str
    chosen: bool = False
    whisker: tuple[float, float] | None = None


@dataclass(frozen=True)
class Band:
    """A strip above the plot for marks that have no place in it.

    Attributes:
        top: Pixels from the top.
        height: Pixels.
        label: What belongs there.
    """

    top: float
    height: float
    label: str


@dataclass(frozen=True)
class Plot:
    """One chart.

    Attributes:
        label: What the chart shows, for those who cannot see it.
        top: Pixels above the area of the axes.
        bottom: Pixels down to its lower edge.
        x_ticks: Marks of the lower axis, in percent.
        y_ticks: Marks of the left axis, in pixels.
        marks: The points.
        line: Corners of a line, in percent and pixels.
        bands: Strips above the area of the axes.
        limit_at: Pixels down to the line of the budget, or ``None``.
        limit_label: What stands at that line.
    """

    label: str
    top: float
    bottom: float
    x_ticks: list[Tick]
    y_ticks: list[Tick]
    marks: list[Mark]
    line: list[tuple[float, float]] = field(default_factory=list)
    bands: list[Band] = field(default_factory=list)
    limit_at: float | None = None
    limit_label: str = ""


@dataclass(frozen=True)
class Whisker:
    """One row of the chart of intervals, in percent from the left.

    Attributes:
        name: What is measured.
        value: What stands there in words.
        at: Place of the loss.
        ends: Ends of its interval, or ``None``.
    """

    name: str
    value: str
    at: float
    ends: tuple[float, float] | None


@dataclass(frozen=True)
class WhiskerPlot:
    """The losses against the budget, in percent from the left.

    Attributes:
        label: What the chart shows, for those who cannot see it.
        rows: One row a split.
        ticks: Marks of the axis.
        limit_at: Place of the budget.
        limit_label: What stands there.
    """

    label: str
    rows: list[Whisker]
    ticks: list[Tick]
    limit_at: float
    limit_label: str
