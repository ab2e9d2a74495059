"""The result of a search for people and for pipelines."""

from __future__ import annotations

import json
import math
import os
import platform
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from vq_plugin.select import Schemes
from vq_plugin.summary import Summary, summary
from vq_plugin.table import format_bytes, format_table
from vq_plugin.tuning.search import TuneResult

REPORT_VERSION = 1


def write_report(
    path: Path, result: TuneResult, model_path: Path | None, *, recipe: str | None = None
) -> None:
    """Writes ``report.json``; numbers that do not exist are null.

    Args:
        path: Where to.
        result: The result of the search.
        model_path: The compressed file, or ``None``.
        recipe: Path of the recipe, for the record.
    """
    sizes = summary(result.model)
    report = {
        "report_version": REPORT_VERSION,
        "passed": result.passed,
        "reason": result.stopped,
        "budget": asdict(result.budget),
        "schemes": None if result.schemes is None else format_schemes(result.schemes),
        "tuning_split": {
            "baseline": result.baseline,
            "score": result.score,
            "loss": result.loss,
        },
        "test_split": {
            "baseline": result.test_baseline,
            "score": result.test_score,
            "loss": result.test_loss,
        },
        "layer_rate": sizes.layer_rate if sizes.rows else None,
        "file_rate": None if model_path is None else file_rate(sizes, model_path),
        "file_bytes": None if model_path is None else model_path.stat().st_size,
        "float_bytes": _float_nbytes(sizes),
        "layers": [asdict(row) for row in sizes.rows],
        "trials": [
            {**asdict(trial), "schemes": format_schemes(trial.schemes)} for trial in result.trials
        ],
        "recipe": recipe,
        "environment": _environment(),
    }
    text = json.dumps(_without_nan(report), indent=2, ensure_ascii=False)
    path.write_text(text + "\n", encoding="utf-8")


def format_result(result: TuneResult, model_path: Path | None) -> str:
    """The result as a terminal table: trials, layers, totals, verdict."""
    parts = [_trials(result)]
    sizes = summary(result.model)
    if result.passed:
        parts.append(str(sizes))
        if model_path is not None:
            parts.append(
                f"file: {format_bytes(_float_nbytes(sizes))} -> "
                f"{format_bytes(model_path.stat().st_size)} "
                f"(file rate {file_rate(sizes, model_path):.1f}x)  {model_path}"
            )
    parts.append(_metrics(result))
    return "\n\n".join(parts)


def file_rate(sizes: Summary, path: str | os.PathLike[str]) -> float:
    """Bytes of the float32 ``state_dict`` over the bytes of the file."""
    return _float_nbytes(sizes) / os.stat(path).st_size


def format_schemes(schemes: Schemes) -> dict[str, str | None]:
    """A setting as text: patterns to schemes, classes by their names."""
    if not isinstance(schemes, Mapping):
        return {"*": str(schemes)}
    return {
        pattern.__name__ if isinstance(pattern, type) else pattern: None
        if scheme is None
        else str(scheme)
        for pattern, scheme in schemes.items()
    }


def _float_nbytes(sizes: Summary) -> int:
    return sizes.float_nbytes + sizes.other_float_nbytes


def _trials(result: TuneResult) -> str:
    rows = [
        [
            _short(trial.schemes),
            "" if math.isnan(trial.rate) else f"{trial.rate:.1f}x",
            "" if trial.error else f"{trial.score:.4f}",
            "" if trial.error else _loss(result, trial.loss),
            f"{trial.seconds:.1f} s",
            trial.error or ("within budget" if trial.held else "over budget"),
        ]
        for trial in result.trials
    ]
    return format_table(
        ["trial", "model rate", "tuning metric", "loss", "time", ""], rows, right=(1, 2, 3, 4)
    )


def _short(schemes: Schemes) -> str:
    texts = format_schemes(schemes)
    fixed = len(texts) - ("*" in texts)
    everywhere = texts.get("*") or "-"
    return f"{everywhere} (+{fixed} fixed)" if fixed else everywhere


def _metrics(result: TuneResult) -> str:
    rows = [["tuning", f"{result.baseline:.4f}", f"{result.score:.4f}", _loss(result, result.loss)]]
    if result.test_baseline is not None:
        score, loss = result.test_score, result.test_loss
        after = ["", ""] if score is None or loss is None else [f"{score:.4f}", _loss(result, loss)]
        rows.append(["test (untouched)", f"{result.test_baseline:.4f}", *after])
    table = format_table(["split", "float metric", "compressed", "loss"], rows, right=(1, 2, 3))
    verdict = (
        f"PASSED: within the budget of {result.budget}"
        if result.passed
        else f"NOT REACHED: budget of {result.budget}; {result.stopped}"
    )
    return f"{table}\n{verdict}"


def _loss(result: TuneResult, loss: float) -> str:
    return f"{loss:.2%}" if result.budget.relative is not None else f"{loss:.4f}"


def _environment() -> dict[str, Any]:
    from vq_plugin import __version__

    return {
        "vq_plugin": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "machine": platform.machine(),
        "threads": torch.get_num_threads(),
    }


def _without_nan(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {key: _without_nan(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return value
