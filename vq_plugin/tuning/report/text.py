"""The report as a table in the terminal."""

from __future__ import annotations

import textwrap
from pathlib import Path

from vq_plugin.table import format_bytes, format_table
from vq_plugin.tuning.report import wording
from vq_plugin.tuning.report.content import Report, build_report
from vq_plugin.tuning.result import TuneResult, kind_of

_WIDTH = 100
_LONGEST_NAME = 30
_NARROWEST = 24
# Not every terminal can show an arrow.
_ARROW = "->"


def format_result(result: TuneResult, model_path: Path | None = None) -> str:
    """A result as a terminal table: trials, layers, totals, and the verdict last.

    Args:
        result: The result of the search.
        model_path: The compressed file, or ``None`` if none was written.

    Returns:
        The text without a final newline.
    """
    report = build_report(result, model_path)
    parts = [_trials(report)] if result.trials else []
    if result.passed:
        parts += [_layers(report), _totals(report)]
    if result.exports:
        parts.append(_exports(report))
    if result.left_float:
        parts.append(_left_float(report))
    parts += [_splits(report), _verdict(report)]
    return "\n\n".join(parts)


def _trials(report: Report) -> str:
    trials, budget = report.result.trials, report.result.budget
    changes = wording.change_texts(report.result, _ARROW, most=1)
    rows = [
        [
            str(index + 1),
            format_bytes(trial.nbytes),
            wording.rate_text(trial.rate),
            wording.number_text(trial.harm, ".2g"),
            wording.loss_text(budget, trial.loss),
            wording.interval_text(budget, trial.interval),
            "chosen" if index == report.chosen_trial else kind_of(budget, trial),
            trial.error or "trained: " * (trial.phase == "recovery") + change,
        ]
        for index, (trial, change) in enumerate(zip(trials, changes, strict=True))
    ]
    header = ["#", "size", "rate", "harm", "loss", "interval", "", "change against the best so far"]
    if all(trial.interval is None for trial in trials):
        header.remove("interval")
        rows = [[*row[:5], *row[6:]] for row in rows]
    # The last column takes the room that the others leave.
    columns = list(zip(header, *rows, strict=True))[:-1]
    room = max(_WIDTH - sum(max(map(len, column)) + 2 for column in columns), _NARROWEST)
    rows = [[*row[:-1], _clip(row[-1], room)] for row in rows]
    return format_table([*header[:-1], _clip(header[-1], room)], rows, right=range(len(header) - 2))


def _layers(report: Report) -> str:
    rows = [
        [
            _end_of(wording.layer_text(layer.name)),
            "x".join(map(str, layer.shape)),
            layer.scheme,
            f"{wording.bits_in_file(layer):.2f}",
            format_bytes(layer.file_nbytes),
            wording.share_text(layer.file_nbytes / (report.sizes.nbytes or 1)),
        ]
        for layer in report.layers
    ]
    header = ["layer", "shape", "scheme", "bits/weight", "size", "share"]
    notes = [
        f"{wording.layer_text(layer.name)}: {layer.note}" for layer in report.layers if layer.note
    ]
    table = format_table(header, rows, right=(3, 4, 5))
    return "\n".join([table, *(_clip(note, _WIDTH) for note in notes)])


def _left_float(report: Report) -> str:
    room = _WIDTH - _LONGEST_NAME - 14
    rows = [
        [_end_of(weight.name), format_bytes(weight.nbytes), _clip(weight.reason, room)]
        for weight in report.result.left_float
    ]
    return format_table(["left in float", "size", "why"], rows, right=(1,))


def _exports(report: Report) -> str:
    rows = [
        [
            export.file,
            format_bytes(export.nbytes),
            wording.number_text(export.agreement, ".4f"),
            wording.number_text(export.error, ".1e"),
            export.checked,
        ]
        for export in report.result.exports
    ]
    header = ["export", "size", "agreement", "error", "compared"]
    return format_table(header, rows, right=(1, 2, 3))


def _totals(report: Report) -> str:
    sizes = report.sizes
    rows = [
        [name, format_bytes(sizes.float_nbytes), format_bytes(nbytes), wording.rate_text(rate)]
        for name, nbytes, rate in (
            ("model", sizes.nbytes, report.result.rate),
            ("file", sizes.file_nbytes, sizes.file_rate),
        )
        if nbytes is not None
    ]
    rows += [
        [name, f"{before:,}", f"{after:,}", wording.rate_text(before / after)]
        for name, before, after in wording.fewer(report.result)
    ]
    rest = format_bytes(sizes.other_nbytes or 0)
    table = format_table(["", "float32", "compressed", "rate"], rows, right=(1, 2, 3))
    layer_rate = wording.rate_text(sizes.layer_rate)
    return f"{table}\nlayer rate in the file: {layer_rate}; everything else: {rest}"


def _splits(report: Report) -> str:
    budget = report.result.budget
    rows = [
        [
            name,
            wording.number_text(split.baseline, ".4f"),
            wording.number_text(split.score, ".4f"),
            wording.loss_text(budget, split.loss),
            wording.interval_text(budget, split.interval),
        ]
        for name, split in zip(
            ("tuning", "test (untouched)"), wording.splits(report.result), strict=False
        )
    ]
    sure = f"{wording.sure_text(budget)} interval"
    header = ["split", "float metric", "compressed", "loss", sure]
    if all(row[-1] == wording.NOTHING for row in rows):
        header, rows = header[:-1], [row[:-1] for row in rows]
    return format_table(header, rows, right=range(1, len(header)))


def _verdict(report: Report) -> str:
    verdict = "PASSED" if report.result.passed else "NOT REACHED"
    lines = [f"{verdict}: {' '.join(wording.verdict_sentences(report, _ARROW))}"]
    if cut := wording.cut_text(report.result):
        lines.insert(0, cut)
    return "\n".join(map(_wrapped, lines))


def _wrapped(line: str) -> str:
    """Lines of the terminal's width, with no number apart from its percent sign."""
    bound = line.replace(" %", "\N{NO-BREAK SPACE}%")
    filled = textwrap.fill(bound, _WIDTH, subsequent_indent="  ", break_long_words=False)
    return filled.replace("\N{NO-BREAK SPACE}", " ")


def _clip(text: str, width: int) -> str:
    text = " ".join(text.split())
    return text if len(text) <= width else f"{text[: width - 3]}..."


def _end_of(name: str) -> str:
    """The name of a layer; of a long one its end, which tells it from its neighbours."""
    name = " ".join(name.split())
    return name if len(name) <= _LONGEST_NAME else f"...{name[3 - _LONGEST_NAME :]}"
