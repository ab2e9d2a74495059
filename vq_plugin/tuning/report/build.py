"""From the result of a search to the facts of its report."""

from __future__ import annotations

import math
import os
import platform
from collections.abc import Mapping
from pathlib import Path

import torch

from vq_plugin.schemes import Scheme
from vq_plugin.summary import LayerRow, Summary, summary
from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.report import schema
from vq_plugin.tuning.result import LayerLadder, TuneResult


def build_report(
    result: TuneResult, model_path: Path | None = None, *, recipe: Path | None = None
) -> schema.Report:
    """The facts of a report; numbers that do not exist are ``None``.

    Args:
        result: The result of the search.
        model_path: The compressed file, or ``None`` if none was written.
        recipe: The recipe of the run; its text goes into the report.

    Returns:
        The report.
    """
    sizes = summary(result.model, rest=result.rest)
    layers = _layers(result, sizes)
    return schema.Report(
        report_version=schema.REPORT_VERSION,
        verdict=schema.Verdict(
            passed=result.passed,
            stopped=result.stopped,
            cut=result.cut,
            chosen_trial=_chosen_trial(result),
        ),
        budget=_budget(result.budget),
        tuning_split=_tuning_split(result),
        test_split=_test_split(result),
        schemes=None if result.schemes is None else _texts(result.schemes),
        bytes=_sizes(result, sizes, layers, model_path),
        rates=schema.Rates(
            layers=sizes.file_layer_rate if result.passed else None,
            model=result.rate if result.passed else None,
            file=None if model_path is None else file_rate(sizes, model_path),
        ),
        layers=layers,
        frontier=tuple(
            schema.FrontierPoint(nbytes=point.nbytes, harm=point.harm) for point in result.frontier
        ),
        trials=_trials(result),
        resumed=result.resumed,
        recipe=None
        if recipe is None
        else schema.Recipe(name=recipe.name, text=recipe.read_bytes().decode()),
        seconds=schema.Seconds(
            search=result.search_seconds,
            evaluations=math.fsum(trial.seconds for trial in result.trials),
        ),
        environment=_environment(),
    )


def file_rate(sizes: Summary, path: str | os.PathLike[str]) -> float:
    """Bytes of the float32 ``state_dict`` over the bytes of the file."""
    return _float_nbytes(sizes) / os.stat(path).st_size


def _float_nbytes(sizes: Summary) -> int:
    return sizes.float_nbytes + sizes.other_float_nbytes


def _texts(schemes: Mapping[str, Scheme | None]) -> dict[str, str | None]:
    return {name: _text(scheme) for name, scheme in schemes.items()}


def _text(scheme: Scheme | None) -> str | None:
    return None if scheme is None else str(scheme)


def _chosen_trial(result: TuneResult) -> int | None:
    if result.schemes is None:
        return None
    return next(
        (
            index
            for index, trial in enumerate(result.trials)
            if trial.held and dict(trial.schemes) == result.schemes
        ),
        None,
    )


def _budget(budget: LossBudget) -> schema.Budget:
    return schema.Budget(
        relative=budget.relative,
        absolute=budget.absolute,
        higher_is_better=budget.higher_is_better,
        confidence=budget.confidence,
        interval_confidence=0.95 if budget.confidence is None else budget.confidence,
    )


def _tuning_split(result: TuneResult) -> schema.Split:
    # Without a chosen model the result speaks of the float model: its loss of 0 would look like
    # a success to whoever reads this key alone.
    passed = result.passed
    return schema.Split(
        baseline=result.baseline,
        score=result.score if passed else None,
        loss=result.loss if passed else None,
        interval=result.interval if passed else None,
    )


def _test_split(result: TuneResult) -> schema.Split | None:
    if result.test_baseline is None:
        return None
    return schema.Split(
        baseline=result.test_baseline,
        score=result.test_score,
        loss=result.test_loss,
        interval=result.test_interval,
    )


def _sizes(
    result: TuneResult,
    sizes: Summary,
    layers: tuple[schema.Layer, ...],
    model_path: Path | None,
) -> schema.Sizes:
    model = sizes.file_nbytes + sizes.other_nbytes if result.passed else None
    inside = sum(layer.chosen.nbytes for layer in layers if layer.chosen is not None)
    return schema.Sizes(
        float32=_float_nbytes(sizes),
        model=model,
        # A weight left in float under two names counts twice in the layers, once in the model.
        other=None if model is None else max(model - inside, 0),
        file=None if model_path is None else model_path.stat().st_size,
    )


def _layers(result: TuneResult, sizes: Summary) -> tuple[schema.Layer, ...]:
    """The layers of the search, then codebook layers that it did not touch."""
    rows = {row.name: row for row in sizes.rows}
    total = sizes.file_nbytes + sizes.other_nbytes
    layers = [
        schema.Layer(
            name=ladder.name,
            shape=ladder.shape,
            float_nbytes=ladder.float_nbytes,
            chosen=_choice(ladder, rows.pop(ladder.name, None), total) if result.passed else None,
            candidates=_candidates(ladder),
        )
        for ladder in result.layers
    ]
    others = [
        schema.Layer(
            name=row.name,
            shape=row.shape,
            float_nbytes=row.float_nbytes,
            chosen=_choice_of_row(row, total),
            candidates=(),
        )
        for row in rows.values()
        if result.passed
    ]
    return (*layers, *others)


def _choice(ladder: LayerLadder, row: LayerRow | None, total: int) -> schema.Choice:
    if row is not None:
        return _choice_of_row(row, total)
    nbytes = next(
        (c.nbytes for c in ladder.candidates if c.scheme is None),
        ladder.float_nbytes,
    )
    return schema.Choice(
        scheme=None,
        nbytes=nbytes,
        bits_per_weight=8 * nbytes / math.prod(ladder.shape),
        share=nbytes / total,
        note="",
    )


def _choice_of_row(row: LayerRow, total: int) -> schema.Choice:
    return schema.Choice(
        scheme=row.scheme,
        nbytes=row.file_nbytes,
        bits_per_weight=8 * row.file_nbytes / math.prod(row.shape),
        share=row.file_nbytes / total,
        note=row.note,
    )


def _candidates(ladder: LayerLadder) -> tuple[schema.Candidate, ...]:
    weights = math.prod(ladder.shape)
    return tuple(
        schema.Candidate(
            scheme=_text(candidate.scheme),
            nbytes=candidate.nbytes,
            bits_per_weight=8 * candidate.nbytes / weights,
            error=candidate.error,
            harm=candidate.harm,
        )
        for candidate in ladder.candidates
    )


def _trials(result: TuneResult) -> tuple[schema.Trial, ...]:
    return tuple(
        schema.Trial(
            schemes=_texts(trial.schemes),
            nbytes=trial.nbytes,
            rate=trial.rate,
            harm=trial.harm,
            score=trial.score,
            loss=trial.loss,
            interval=trial.interval,
            held=trial.held,
            phase=trial.phase,
            seconds=trial.seconds,
            error=trial.error,
        )
        for trial in result.trials
    )


def _environment() -> schema.Environment:
    from vq_plugin import __version__

    return schema.Environment(
        vq_plugin=__version__,
        torch=torch.__version__,
        python=platform.python_version(),
        machine=platform.machine(),
        threads=torch.get_num_threads(),
    )
