"""Charts of the trials: loss and predicted harm against size, and the loss against the budget."""

from __future__ import annotations

from itertools import pairwise

from vq_plugin.table import format_bytes
from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.plot import Band, Mark, Plot, Whisker, WhiskerPlot
from vq_plugin.tuning.report.scales import (
    Axis,
    decade_label,
    log_axis,
    power_axis,
    power_ticks,
    ticks,
)
from vq_plugin.tuning.report.schema import Interval, Report, Trial

_HEIGHT = 280.0
_BAND = 28.0
# A trial that loses many times the budget would press all others onto one line: beyond this many
# budgets it goes into the band above.
_MOST_BUDGETS = 4.0
_MOST_LAYERS_NAMED = 12


def tradeoff_chart(report: Report) -> Plot | None:
    """Loss against bytes, every trial a mark; ``None`` without trials."""
    if not report.trials:
        return None
    limit = wording.limit_of(report)
    losses = [trial.loss for trial in report.trials if trial.loss is not None]
    inside = [loss for loss in losses if loss <= _MOST_BUDGETS * limit]
    beyond = len(inside) < len(losses)
    high = 1.06 * max([*inside, 1.25 * limit])
    low = min([0.0, *inside])
    bands = _bands(report, beyond)
    top = _BAND * len(bands)
    x = log_axis([float(trial.nbytes) for trial in report.trials], 0, 100)
    y = Axis(low - 0.04 * (high - low), high, top + _HEIGHT, top)
    return Plot(
        label=f"Loss of {len(report.trials)} trials against the bytes of the model",
        top=top,
        bottom=top + _HEIGHT,
        x_ticks=ticks(x, _bytes_label),
        y_ticks=ticks(y, lambda loss: _loss_label(report, loss)),
        marks=[
            Mark(
                x=x.at(trial.nbytes),
                y=_height_of(trial, y, bands),
                kind=wording.kind_of(report, trial),
                title=_title(report, index),
                chosen=index == report.verdict.chosen_trial,
                whisker=_whisker(trial, y),
            )
            for index, trial in enumerate(report.trials)
        ],
        line=_steps(_measured_frontier(report), x, y),
        bands=bands,
        limit_at=y.at(limit),
        limit_label=f"budget {wording.limit_text(report)}",
    )


def predicted_chart(report: Report) -> Plot | None:
    """Predicted harm against bytes, with the trials; ``None`` without a predicted frontier."""
    # The float model does no harm, and a logarithmic axis has no place for that.
    frontier = [(point.nbytes, point.harm) for point in report.frontier if point.harm]
    if not frontier:
        return None
    tried = [(index, trial, trial.harm) for index, trial in enumerate(report.trials) if trial.harm]
    sizes = [nbytes for nbytes, _ in frontier] + [trial.nbytes for _, trial, _ in tried]
    harms = [harm for _, harm in frontier] + [harm for *_, harm in tried]
    x = log_axis(list(map(float, sizes)), 0, 100)
    y = power_axis(harms, 10, _HEIGHT, 0)
    return Plot(
        label=f"Predicted harm of {len(frontier)} settings against the bytes of the model",
        top=0,
        bottom=_HEIGHT,
        x_ticks=ticks(x, _bytes_label),
        y_ticks=power_ticks(y, 10, 6, decade_label),
        marks=[
            Mark(
                x=x.at(trial.nbytes),
                y=y.at(harm),
                kind=wording.kind_of(report, trial),
                title=_title(report, index),
                chosen=index == report.verdict.chosen_trial,
            )
            for index, trial, harm in tried
        ],
        line=[(x.at(nbytes), y.at(harm)) for nbytes, harm in sorted(frontier)],
    )


def interval_chart(report: Report) -> WhiskerPlot | None:
    """Losses and their intervals against the budget; ``None`` if no loss is known."""
    losses = [row for row in _losses(report) if row[1] is not None]
    if not losses:
        return None
    limit = wording.limit_of(report)
    values = [0.0, limit, *(loss for _, loss, _ in losses if loss is not None)]
    values += [end for *_, interval in losses for end in interval or ()]
    air = 0.06 * (max(values) - min(values))
    x = Axis(min(values) - air, max(values) + 2 * air, 0, 100)
    rows = [
        Whisker(
            name=name,
            value=_in_words(report, loss, interval),
            at=x.at(loss),
            ends=None if interval is None else (x.at(interval[0]), x.at(interval[1])),
        )
        for name, loss, interval in losses
        if loss is not None
    ]
    return WhiskerPlot(
        label="; ".join(f"{row.name}: loss {row.value}" for row in rows),
        rows=rows,
        ticks=ticks(x, lambda loss: _loss_label(report, loss)),
        limit_at=x.at(limit),
        limit_label=f"budget {wording.limit_text(report)}",
    )


def _losses(report: Report) -> list[tuple[str, float | None, Interval]]:
    """The losses that the verdict speaks of; without a chosen model those of the closest trial."""
    tuning, test = report.tuning_split, report.test_split
    name = "Tuning split"
    loss, interval = tuning.loss, tuning.interval
    closest = wording.closest_trial(report)
    if loss is None and closest is not None:
        trial = report.trials[closest]
        name, loss, interval = "Closest trial", trial.loss, trial.interval
    rows = [(name, loss, interval)]
    if test is not None:
        rows.append(("Test split", test.loss, test.interval))
    return rows


def _in_words(report: Report, loss: float, interval: Interval) -> str:
    text = wording.loss_text(report, loss)
    return text if interval is None else f"{text} ({wording.interval_text(report, interval)})"


def _bands(report: Report, beyond: bool) -> list[Band]:
    labels = []
    if any(trial.loss is None for trial in report.trials):
        labels.append("failed")
    if beyond:
        labels.append("higher")
    return [Band(index * _BAND, _BAND, label) for index, label in enumerate(labels)]


def _height_of(trial: Trial, y: Axis, bands: list[Band]) -> float:
    if trial.loss is None:
        return bands[0].top + _BAND / 2
    if trial.loss > y.high:
        return bands[-1].top + _BAND / 2
    return y.at(trial.loss)


def _whisker(trial: Trial, y: Axis) -> tuple[float, float] | None:
    if trial.interval is None or trial.loss is None or trial.loss > y.high:
        return None
    return y.at(trial.interval[1]), y.at(trial.interval[0])


def _measured_frontier(report: Report) -> list[tuple[float, float]]:
    """Trials than which no other is both smaller and better, from the smallest on."""
    points: list[tuple[float, float]] = []
    finished = [(float(t.nbytes), t.loss) for t in report.trials if t.loss is not None]
    for nbytes, loss in sorted(finished):
        if not points or loss < points[-1][1]:
            points.append((nbytes, loss))
    return points


def _steps(points: list[tuple[float, float]], x: Axis, y: Axis) -> list[tuple[float, float]]:
    inside = [(x.at(nbytes), y.at(loss)) for nbytes, loss in points if loss <= y.high]
    corners = inside[:1]
    for before, after in pairwise(inside):
        corners += [(after[0], before[1]), after]
    return corners


def _title(report: Report, index: int) -> str:
    trial = report.trials[index]
    state = "chosen" if index == report.verdict.chosen_trial else wording.kind_of(report, trial)
    size = f"{format_bytes(trial.nbytes)}, {wording.rate_text(trial.rate)} smaller"
    lines = [
        f"Trial {index}, {state}: {size}",
        trial.error or f"loss {_in_words(report, trial.loss or 0.0, trial.interval)}",
    ]
    settings = [
        f"{wording.layer_text(name)}: {wording.scheme_text(scheme)}"
        for name, scheme in trial.schemes.items()
    ]
    more = len(settings) - _MOST_LAYERS_NAMED
    lines += settings[:_MOST_LAYERS_NAMED]
    return "\n".join([*lines, *([f"and {more} more layers"] if more > 0 else [])])


def _bytes_label(nbytes: float) -> str:
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if nbytes >= size * (1 - 1e-9):
            return f"{nbytes / size:.4g} {unit}"
    return f"{nbytes:.4g} B"


def _loss_label(report: Report, loss: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    if report.budget.relative is not None:
        return f"{round(100 * loss, 6) + 0.0:.4g} %"
    return f"{round(loss, 8) + 0.0:.4g}"
