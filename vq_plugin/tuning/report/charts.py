"""Charts of the trials: loss against size, and the loss against the budget."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import pairwise

from vq_plugin.table import format_bytes
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.content import Report
from vq_plugin.tuning.report.plot import Band, Mark, Plot, Whisker, WhiskerPlot
from vq_plugin.tuning.report.scales import Axis, log_axis, ticks
from vq_plugin.tuning.result import Interval, Trial

_HEIGHT = 280.0
_BAND = 28.0
# A trial that loses many times the budget would press all others onto one line: beyond this many
# budgets it goes into the band above.
_MOST_BUDGETS = 4.0
_MOST_LAYERS_NAMED = 12


def tradeoff_chart(report: Report) -> Plot | None:
    """Loss against bytes, every trial a mark; ``None`` without trials."""
    trials, budget = report.result.trials, report.result.budget
    if not trials:
        return None
    losses = [trial.loss for trial in trials if wording.exists(trial.loss)]
    inside = [loss for loss in losses if loss <= _MOST_BUDGETS * budget.limit]
    beyond = len(inside) < len(losses)
    high = 1.06 * max([*inside, 1.25 * budget.limit])
    low = min([0.0, *inside])
    bands = _bands(len(losses) < len(trials), beyond)
    top = _BAND * len(bands)
    x = log_axis([float(trial.nbytes) for trial in trials], 0, 100)
    y = Axis(low - 0.04 * (high - low), high, top + _HEIGHT, top)
    return Plot(
        label=f"Loss of {len(trials)} trials against the bytes of the model",
        top=top,
        bottom=top + _HEIGHT,
        x_ticks=ticks(x, _bytes_label),
        y_ticks=ticks(y, lambda loss: _loss_label(budget, loss)),
        marks=[
            Mark(
                x=x.at(trial.nbytes),
                y=_height_of(trial, y, bands),
                kind=wording.kind_of(budget, trial),
                title=_title(report, index),
                chosen=index == report.chosen_trial,
                whisker=_whisker(trial, y),
            )
            for index, trial in enumerate(trials)
        ],
        line=_steps(_measured_frontier(trials), x, y),
        bands=bands,
        limit_at=y.at(budget.limit),
        limit_label=f"budget {wording.limit_text(budget)}",
    )


def interval_chart(report: Report) -> WhiskerPlot | None:
    """Losses and their intervals against the budget; ``None`` if no loss is known."""
    losses, budget = list(_losses(report)), report.result.budget
    if not losses:
        return None
    values = [0.0, budget.limit, *(loss for _, loss, _ in losses)]
    values += [end for *_, interval in losses for end in interval or ()]
    air = 0.06 * (max(values) - min(values))
    x = Axis(min(values) - air, max(values) + 2 * air, 0, 100)
    rows = [
        Whisker(
            name=name,
            value=_in_words(budget, loss, interval),
            at=x.at(loss),
            ends=None if interval is None else (x.at(interval[0]), x.at(interval[1])),
        )
        for name, loss, interval in losses
    ]
    return WhiskerPlot(
        label="; ".join(f"{row.name}: loss {row.value}" for row in rows),
        rows=rows,
        ticks=ticks(x, lambda loss: _loss_label(budget, loss)),
        limit_at=x.at(budget.limit),
        limit_label=f"budget {wording.limit_text(budget)}",
    )


def _losses(report: Report) -> Iterator[tuple[str, float, Interval | None]]:
    """The losses that the verdict speaks of; without a chosen model those of the closest trial."""
    tuning, *test = wording.splits(report.result)
    closest = wording.closest_trial(report)
    rows = [("Tuning split", tuning.loss, tuning.interval)]
    if not wording.exists(tuning.loss) and closest is not None:
        rows = [("Closest trial", closest.loss, closest.interval)]
    rows += [("Test split", split.loss, split.interval) for split in test]
    for name, loss, interval in rows:
        if loss is not None and wording.exists(loss):
            yield name, loss, _finite(interval)


def _finite(interval: Interval | None) -> Interval | None:
    return None if interval is None or not all(map(wording.exists, interval)) else interval


def _in_words(budget: LossBudget, loss: float, interval: Interval | None) -> str:
    text = wording.loss_text(budget, loss)
    return text if interval is None else f"{text} ({wording.interval_text(budget, interval)})"


def _bands(failed: bool, beyond: bool) -> list[Band]:
    labels = ["failed"] * failed + ["higher"] * beyond
    return [Band(index * _BAND, _BAND, label) for index, label in enumerate(labels)]


def _height_of(trial: Trial, y: Axis, bands: list[Band]) -> float:
    if not wording.exists(trial.loss):
        return bands[0].top + _BAND / 2
    if trial.loss > y.high:
        return bands[-1].top + _BAND / 2
    return y.at(trial.loss)


def _whisker(trial: Trial, y: Axis) -> tuple[float, float] | None:
    interval = _finite(trial.interval)
    if interval is None or not trial.loss <= y.high:
        return None
    return y.at(interval[1]), y.at(interval[0])


def _measured_frontier(trials: Sequence[Trial]) -> list[tuple[float, float]]:
    """Trials than which no other is both smaller and better, from the smallest on."""
    points: list[tuple[float, float]] = []
    finished = [(float(t.nbytes), t.loss) for t in trials if wording.exists(t.loss)]
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
    trial, budget = report.result.trials[index], report.result.budget
    state = "chosen" if index == report.chosen_trial else wording.kind_of(budget, trial)
    size = f"{format_bytes(trial.nbytes)}, {wording.rate_text(trial.rate)} smaller"
    lines = [
        f"Trial {index}, {state}: {size}",
        trial.error or f"loss {_in_words(budget, trial.loss, trial.interval)}",
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


def _loss_label(budget: LossBudget, loss: float) -> str:
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    if budget.relative is not None:
        return f"{round(100 * loss, 6) + 0.0:.4g} %"
    return f"{round(loss, 8) + 0.0:.4g}"
