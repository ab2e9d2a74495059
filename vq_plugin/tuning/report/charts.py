"""Charts of the trials: loss against size, and the loss against the budget.

The page's template draws them. Places from left to right are percent of the plot's width and places
from top to bottom are pixels: so a chart grows and shrinks with the page while its text and marks
keep their size.
"""

from __future__ import annotations

from typing import NamedTuple

from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.content import Report
from vq_plugin.tuning.report.scales import Axis, log_axis
from vq_plugin.tuning.report.wording import Split
from vq_plugin.tuning.result import TuneResult

_HEIGHT = 280.0
# A trial that loses many times the budget would press all others onto one line: beyond this many
# budgets it stays at the upper edge.
_MOST_BUDGETS = 4.0


class Tradeoff(NamedTuple):
    """Loss against bytes; ``line`` joins the best of the trials that hold at each size."""

    x: Axis
    y: Axis
    line: list[tuple[float, float]]


class Intervals(NamedTuple):
    """Losses and their intervals against the budget."""

    x: Axis
    rows: list[Split]


def tradeoff_chart(result: TuneResult) -> Tradeoff | None:
    """Loss against bytes; ``None`` without trials."""
    if not result.trials:
        return None
    limit = result.budget.limit
    finished = [(t.nbytes, t.loss) for t in result.trials if wording.exists(t.loss)]
    inside = [loss for _, loss in finished if loss <= _MOST_BUDGETS * limit]
    low, high = min([0.0, *inside]), 1.06 * max([*inside, 1.25 * limit])
    x = log_axis([float(trial.nbytes) for trial in result.trials], 0, 100)
    y = Axis(low - 0.04 * (high - low), high, _HEIGHT, 0)
    line: list[tuple[float, float]] = []
    for nbytes, loss in sorted((t.nbytes, t.loss) for t in result.trials if t.held):
        place = x.at(nbytes), y.at(loss)
        if loss <= high and (not line or place[1] > line[-1][1]):
            line += [(place[0], line[-1][1]), place] if line else [place]
    return Tradeoff(x, y, line)


def interval_chart(report: Report) -> Intervals | None:
    """Losses that the verdict speaks of, or the closest trial's; ``None`` if none is known."""
    tuning, *test = wording.splits(report.result)
    closest = wording.closest_trial(report)
    if closest is not None and not wording.exists(tuning.loss):
        tuning = tuning._replace(name="Closest trial", loss=closest.loss, interval=closest.interval)
    rows = [row for row in (tuning, *test) if wording.exists(row.loss)]
    if not rows:
        return None
    ends = [end for row in rows for end in (row.loss, *(row.interval or ())) if end is not None]
    values = [0.0, report.result.budget.limit, *ends]
    air = 0.06 * (max(values) - min(values))
    return Intervals(Axis(min(values) - air, max(values) + 2 * air, 0, 100), rows)
