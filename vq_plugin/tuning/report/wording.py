"""How the facts of a report are put for people, in the terminal and on the page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

from vq_plugin.table import format_bytes
from vq_plugin.tuning.report.schema import Interval, Report, Trial

NOTHING = "-"


def share_text(part: float) -> str:
    """A part of the whole."""
    return f"{100 * part:.1f} %"


def confidence_text(confidence: float) -> str:
    """How sure something is."""
    return f"{100 * confidence:.4g} %"


def loss_text(report: Report, loss: float | None) -> str:
    """A loss in the unit of the budget."""
    if loss is None:
        return NOTHING
    # Adding 0.0 turns a rounded -0.0 into 0.0.
    if report.budget.relative is not None:
        return f"{round(100 * loss, 2) + 0.0:.2f} %"
    return f"{round(loss, 4) + 0.0:.4f}"


def limit_of(report: Report) -> float:
    """The limit of the budget, relative or absolute."""
    relative, absolute = report.budget.relative, report.budget.absolute
    limit = relative if relative is not None else absolute
    assert limit is not None
    return limit


def limit_text(report: Report) -> str:
    """The limit of the budget in its unit."""
    limit = limit_of(report)
    return f"{100 * limit:.4g} %" if report.budget.relative is not None else f"{limit:.4g}"


def unit_text(report: Report) -> str:
    """What a loss is measured in."""
    return "% of the baseline" if report.budget.relative is not None else "in the metric's unit"


def interval_text(report: Report, interval: Interval) -> str:
    """Both ends of an interval of a loss."""
    if interval is None:
        return NOTHING
    low, high = (loss_text(report, end) for end in interval)
    return f"{low.removesuffix(' %')} to {high}"


def rate_text(rate: float | None) -> str:
    """How many times smaller."""
    if rate is None:
        return NOTHING
    return f"{rate:.1f}x" if rate < 99.95 else f"{rate:.0f}x"


def harm_text(harm: float | None) -> str:
    """A predicted harm."""
    return NOTHING if harm is None else f"{harm:.2g}"


def score_text(score: float | None) -> str:
    """A value of the metric."""
    return NOTHING if score is None else f"{score:.4f}"


def seconds_text(seconds: float | None) -> str:
    """A time in seconds, minutes or hours."""
    if seconds is None:
        return NOTHING
    if seconds < 99.95:
        return f"{seconds:.1f} s"
    if seconds < 99.95 * 60:
        return f"{seconds / 60:.1f} min"
    return f"{seconds / 3600:.1f} h"


def layer_text(name: str) -> str:
    """Name of a layer; a model that is a bare layer has an empty one."""
    return name or "(model)"


def scheme_text(scheme: str | None) -> str:
    """A scheme, or that the layer is left."""
    return "float" if scheme is None else scheme


def kind_of(report: Report, trial: Trial) -> str:
    """What became of a trial.

    Args:
        report: The report that it belongs to.
        trial: The trial.

    Returns:
        ``"held"``, ``"over"``, ``"failed"``, or ``"unsure"`` for a loss that is within the limit
        but not confirmed with the confidence that the budget asks for.
    """
    if trial.loss is None:
        return "failed"
    if trial.held:
        return "held"
    return "over" if trial.loss > limit_of(report) else "unsure"


def kinds_of(report: Report) -> set[str]:
    """What became of the trials, each kind once."""
    return {kind_of(report, trial) for trial in report.trials}


def closest_trial(report: Report) -> int | None:
    """The trial that says most: the chosen one, else the smallest that held, else the best."""
    if report.verdict.passed:
        return report.verdict.chosen_trial
    trials = enumerate(report.trials)
    finished = [(trial, index) for index, trial in trials if trial.loss is not None]
    held = [(trial.nbytes, index) for trial, index in finished if trial.held]
    if held:
        return min(held)[1]
    over = [(trial.loss, index) for trial, index in finished if trial.loss is not None]
    return min(over)[1] if over else None


def cut_text(report: Report) -> str | None:
    """What cut the search, if the verdict does not say so already."""
    cut = report.verdict.cut
    return None if cut is None or cut == report.verdict.stopped else f"The search was cut: {cut}"


def verdict_sentences(report: Report, arrow: str) -> list[str]:
    """The verdict in one or two sentences, without the word that opens it."""
    if report.verdict.passed:
        return [_passed(report, arrow)]
    reason = (report.verdict.stopped or "").strip().rstrip(".") or "no setting holds the budget"
    # Settings such as timeout=60 keep their spelling.
    if reason.split()[0].isalpha():
        reason = reason[0].upper() + reason[1:]
    return [f"{reason}.", *_closest(report)]


def change_texts(report: Report, arrow: str, most: int) -> list[str]:
    """What every trial changed against the smallest setting that had held before it.

    Args:
        report: The report.
        arrow: What stands between a layer and its new scheme.
        most: Most layers to name in one text; those whose bytes change most go first.

    Returns:
        One text a trial.
    """
    return list(_changes(report, arrow, most))


def _passed(report: Report, arrow: str) -> str:
    sizes, rates = report.bytes, report.rates
    nbytes, rate = sizes.model or 0, rates.model
    if sizes.file is not None:
        nbytes, rate = sizes.file, rates.file
    tuning, test = report.tuning_split, report.test_split
    sentence = (
        f"{format_bytes(sizes.float32)} {arrow} {format_bytes(nbytes)}, {rate_text(rate)} smaller, "
        f"loss {loss_text(report, tuning.loss)} of {limit_text(report)} allowed"
        f"{_interval_clause(report, tuning.interval)}"
    )
    if test is not None:
        sentence += (
            f"; on the untouched test split {loss_text(report, test.loss)}"
            f"{_interval_clause(report, test.interval)}"
        )
    return f"{sentence}."


def _interval_clause(report: Report, interval: Interval) -> str:
    if interval is None:
        return ""
    sure = confidence_text(report.budget.interval_confidence)
    return f" ({sure} interval {interval_text(report, interval)})"


def _closest(report: Report) -> Iterator[str]:
    index = closest_trial(report)
    if index is None:
        return
    trial, test = report.trials[index], report.test_split
    size = f"{format_bytes(trial.nbytes)}, {rate_text(trial.rate)} smaller"
    loss = f"loss {loss_text(report, trial.loss)} of {limit_text(report)} allowed"
    loss += _interval_clause(report, trial.interval)
    if test is not None and test.loss is not None:
        loss += f"; on the untouched test split {loss_text(report, test.loss)}"
        loss += _interval_clause(report, test.interval)
    yield f"Closest of {len(report.trials)} trials: {size}, {loss}."


def _changes(report: Report, arrow: str, most: int) -> Iterator[str]:
    sizes = {
        (layer.name, candidate.scheme): candidate.nbytes
        for layer in report.layers
        for candidate in layer.candidates
    }
    best: Trial | None = None
    for trial in report.trials:
        if best is None:
            yield _mixture(trial)
        else:
            changed = [n for n, s in trial.schemes.items() if s != best.schemes.get(n)]
            before, after = best.schemes, trial.schemes
            changed.sort(
                key=lambda n: -abs(sizes.get((n, after[n]), 0) - sizes.get((n, before.get(n)), 0))
            )
            yield _listed(trial, changed, arrow, most)
        if trial.held and (best is None or trial.nbytes < best.nbytes):
            best = trial


def _mixture(trial: Trial) -> str:
    counts = Counter(map(scheme_text, trial.schemes.values()))
    if len(counts) == 1:
        return next(iter(counts))
    first, *others = counts.most_common()
    texts = [f"{first[0]} in {first[1]} layers", *(f"{s} in {count}" for s, count in others)]
    return ", ".join(texts)


def _listed(trial: Trial, changed: list[str], arrow: str, most: int) -> str:
    if not changed:
        return "the same setting"
    named = [f"{layer_text(n)} {arrow} {scheme_text(trial.schemes[n])}" for n in changed[:most]]
    if len(named) == len(changed):
        return ", ".join(named)
    return f"{len(changed)} layers: {', '.join(named)}, ..."
