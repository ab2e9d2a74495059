"""How the facts of a report are put for people, in the terminal and on the page."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

from vq_plugin.select import Form
from vq_plugin.summary import LayerRow
from vq_plugin.table import format_bytes
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.report.content import Report
from vq_plugin.tuning.result import Interval, Trial, TuneResult, kind_of

NOTHING = "-"
# A center that happens to be zero is no news.
_FEWER = 0.99


class Split(NamedTuple):
    """The metric on one split of the data; what does not exist is ``None`` or NaN."""

    name: str
    baseline: float
    score: float | None
    loss: float | None
    interval: Interval | None


def splits(result: TuneResult) -> list[Split]:
    """The tuning split, and the test split if there is one."""
    tuning = Split("Tuning split", result.baseline, result.score, result.loss, result.interval)
    if result.test_baseline is None:
        return [tuning]
    test = (result.test_baseline, result.test_score, result.test_loss, result.test_interval)
    return [tuning, Split("Test split", *test)]


def fewer(result: TuneResult) -> list[tuple[str, int, int]]:
    """Weights and multiplications that are not zero, before and after, where that is fewer."""
    before, after = result.float_work, result.work
    if before is None or after is None:
        return []
    counts = [
        ("weights", before.nonzero_weights, after.nonzero_weights),
        ("multiplications", before.nonzero_multiplications, after.nonzero_multiplications),
    ]
    return [(name, old, new) for name, old, new in counts if 0 < new < _FEWER * old]


def exists(number: float | None) -> bool:
    """Whether there is such a number: neither ``None`` nor NaN nor infinite."""
    return number is not None and math.isfinite(number)


def share_text(part: float) -> str:
    """A part of the whole."""
    return f"{100 * part:.1f} %"


def sure_text(budget: LossBudget) -> str:
    """The confidence of the report's two-sided intervals."""
    return f"{100 * (budget.confidence or 0.95):.4g} %"


def loss_text(budget: LossBudget, loss: float | None) -> str:
    """A loss in the unit of the budget."""
    if loss is None or not exists(loss):
        return NOTHING
    return budget.loss_text(loss)


def limit_text(budget: LossBudget, limit: float | None = None) -> str:
    """The limit of the budget, or another round loss, in the budget's unit."""
    limit = budget.limit if limit is None else limit
    return f"{100 * limit:.4g} %" if budget.relative is not None else f"{limit:.4g}"


def unit_text(budget: LossBudget) -> str:
    """What a loss is measured in."""
    return "% of the baseline" if budget.relative is not None else "in the metric's unit"


def interval_text(budget: LossBudget, interval: Interval | None) -> str:
    """Both ends of an interval of a loss."""
    if interval is None:
        return NOTHING
    low, high = (loss_text(budget, end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


def rate_text(rate: float | None) -> str:
    """How many times smaller."""
    if rate is None or not exists(rate):
        return NOTHING
    return f"{rate:.1f}x" if rate < 99.95 else f"{rate:.0f}x"


def number_text(number: float | None, spec: str) -> str:
    """A number that may not exist, as a format specification shows it."""
    return format(number, spec) if exists(number) else NOTHING


def seconds_text(seconds: float) -> str:
    """A time in seconds, minutes or hours."""
    if not exists(seconds):
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def layer_text(name: str) -> str:
    """Name of a layer; a model that is a bare layer has an empty one."""
    return name or "(model)"


def scheme_text(scheme: Form | None) -> str:
    """A scheme, or that the layer is left."""
    return "float" if scheme is None else str(scheme)


def bits_in_file(layer: LayerRow) -> float:
    """Bits per weight in a file; 0 where they are counted in another layer."""
    return 8 * layer.file_nbytes / math.prod(layer.shape)


def kinds_of(result: TuneResult) -> set[str]:
    """What became of the trials, each kind once."""
    return {kind_of(result.budget, trial) for trial in result.trials}


def closest_trial(report: Report) -> Trial | None:
    """The trial that says most: the chosen one, else the smallest that held, else the best."""
    trials = report.result.trials
    if report.result.passed:
        return None if report.chosen_trial is None else trials[report.chosen_trial]
    held = [trial for trial in trials if exists(trial.loss) and trial.held]
    if held:
        return min(held, key=lambda trial: trial.nbytes)
    finished = (trial for trial in trials if exists(trial.loss))
    return min(finished, key=lambda trial: trial.loss, default=None)


def cut_text(result: TuneResult) -> str | None:
    """What cut the search, if the verdict does not say so already."""
    cut = result.cut
    return None if cut is None or cut == result.stopped else f"The search was cut: {cut}"


def verdict_sentences(report: Report, arrow: str) -> list[str]:
    """The verdict in one or two sentences, without the word that opens it."""
    if report.result.passed:
        return [_passed(report, arrow)]
    reason = (report.result.stopped or "").strip().rstrip(".") or "no setting holds the budget"
    # Settings such as timeout=60 keep their spelling.
    if reason.split()[0].isalpha():
        reason = reason[0].upper() + reason[1:]
    return [f"{reason}.", *_closest(report)]


def change_texts(result: TuneResult, arrow: str, most: int) -> Iterator[str]:
    """What every trial changed against the smallest setting that had held before it.

    One text a trial: at most ``most`` layers, those whose bytes change most first, with ``arrow``
    before the new scheme; before them the price of a bit that a model was learned at.
    """
    sizes = {
        (layer.name, candidate.scheme): candidate.nbytes
        for layer in result.layers
        for candidate in layer.candidates
    }
    best: Trial | None = None
    for trial in result.trials:
        price = "" if trial.rate_weight is None else f"{trial.rate_weight:.2g} a bit, "
        if best is None:
            yield price + _mixture(trial)
        else:
            changed = [n for n, s in trial.schemes.items() if s != best.schemes.get(n)]
            before, after = best.schemes, trial.schemes
            changed.sort(
                key=lambda n: -abs(sizes.get((n, after[n]), 0) - sizes.get((n, before.get(n)), 0))
            )
            yield price + _listed(trial, changed, arrow, most)
        if trial.held and (best is None or trial.nbytes < best.nbytes):
            best = trial


def _passed(report: Report, arrow: str) -> str:
    sizes, rate = report.sizes, report.sizes.file_rate or report.result.rate
    return (
        f"{format_bytes(sizes.float_nbytes)} {arrow} "
        f"{format_bytes(sizes.file_nbytes or sizes.nbytes or 0)}, {rate_text(rate)} smaller, "
        f"{_losses(report, splits(report.result)[0])}."
    )


def _losses(report: Report, source: Split | Trial) -> str:
    """The loss of the chosen or the closest setting, and what the test split says of it."""
    budget, test = report.result.budget, splits(report.result)[1:]

    def with_interval(text: str, interval: Interval | None) -> str:
        sure = f" ({sure_text(budget)} interval {interval_text(budget, interval)})"
        return text if interval is None else text + sure

    loss = f"loss {loss_text(budget, source.loss)} of {limit_text(budget)} allowed"
    clauses = [with_interval(loss, source.interval)]
    for split in test:
        if exists(split.loss):
            loss = f"on the untouched test split {loss_text(budget, split.loss)}"
            clauses.append(with_interval(loss, split.interval))
    if exists(report.result.agreement):
        clauses.append(f"agreement with the float model {report.result.agreement:.2f}")
    return "; ".join(clauses)


def _closest(report: Report) -> Iterator[str]:
    trial = closest_trial(report)
    if trial is None:
        return
    count = len(report.result.trials)
    of = "The only trial" if count == 1 else f"Closest of {count} trials"
    yield (
        f"{of}: {format_bytes(trial.nbytes)}, {rate_text(trial.rate)} smaller, "
        f"{_losses(report, trial)}."
    )


def _mixture(trial: Trial) -> str:
    counts = Counter(map(scheme_text, trial.schemes.values()))
    if len(counts) == 1:
        return next(iter(counts))
    first, *others = counts.most_common()
    return ", ".join(
        [
            f"{first[0]} in {first[1]} layer{'s' * (first[1] > 1)}",
            *(f"{s} in {count}" for s, count in others),
        ]
    )


def _listed(trial: Trial, changed: list[str], arrow: str, most: int) -> str:
    if not changed:
        return "the same setting"
    named = [f"{layer_text(n)} {arrow} {scheme_text(trial.schemes[n])}" for n in changed[:most]]
    if len(named) == len(changed):
        return ", ".join(named)
    return f"{len(changed)} layers: {', '.join(named)}, ..."
