"""What runs of MLflow hold: names, tags, parameters and metrics of a result and of its trials."""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Mapping, Sequence
from contextlib import redirect_stdout
from typing import TYPE_CHECKING

from vq_plugin.select import Form
from vq_plugin.summary import summary
from vq_plugin.tuning.result import Trial, TuneResult

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

# A table of runs with more columns than this is of no use, and servers take 100 parameters a call.
_MAX_LAYERS = 90
# What every version of the server takes as a name of a parameter, the prefix left out.
_PARAM_NAME = re.compile(r"[\w.\- ]{0,200}")
# Longer values are refused by servers that keep to the limit of MLflow 2.
_MAX_TAG = 5000
_RESULT_METRICS = (
    "baseline", "score", "loss", "interval", "test_baseline", "test_score", "test_loss",
    "test_interval", "agreement", "rate", "resumed", "search_seconds",
)  # fmt: skip
_TRIAL_METRICS = (
    "score", "loss", "interval", "rate", "nbytes", "harm", "held", "seconds", "rate_weight",
)  # fmt: skip


# The table of runs shows names at once and metrics only on demand: names tell the outcome.
def _parent_tags(result: TuneResult) -> dict[str, str]:
    from vq_plugin import __version__

    reasons = {"stopped": result.stopped, "cut": result.cut}
    return {
        "mlflow.note.content": _verdict(result),
        "passed": str(result.passed).lower(),
        "vq_plugin.version": __version__,
        **{name: reason[:_MAX_TAG] for name, reason in reasons.items() if reason is not None},
    }


def _verdict(result: TuneResult) -> str:
    if not result.passed:
        return f"Budget of {result.budget} not reached: {result.stopped}"[:_MAX_TAG]
    loss = result.loss if result.test_loss is None else result.test_loss
    split = "tuning" if result.test_loss is None else "test"
    shown = result.budget.loss_text(loss)
    return (
        f"Within the budget of {result.budget}: {result.rate:.1f}x smaller, "
        f"loss {shown} on the {split} split."
    )


def log_parent(client: MlflowClient, run_id: str, result: TuneResult, name: str) -> None:
    """Logs a result to its run, which is renamed by the outcome."""
    from mlflow.entities import Param, RunTag

    nbytes = summary(result.model, rest=result.rest).model_file_nbytes
    exports = {
        f"export.{export.target}.{name}": value
        for export in result.exports
        for name in ("nbytes", "agreement", "error")
        if (value := getattr(export, name)) is not None
    }
    counts = {"nbytes": nbytes, "trials": len(result.trials)}
    metrics = metrics_of(result, _RESULT_METRICS, **counts, **exports)
    better = "higher" if result.budget.higher_is_better else "lower"
    params = [
        Param("budget", str(result.budget)),
        Param("metric", f"{better} is better"),
        *_scheme_params(client, run_id, result.schemes or {}),
    ]
    outcome = f"held {result.rate:.1f}x" if result.passed else "not reached"
    tags = {"mlflow.runName": f"{name} {outcome}", **_parent_tags(result)}
    tag_list = [RunTag(key, text) for key, text in tags.items()]
    client.log_batch(run_id, metrics, params, tag_list, synchronous=True)


def trial_name(index: int, trial: Trial) -> str:
    """What the run of a trial is called, from 1 on."""
    # How many there will be is not known while the search goes on.
    number = f"{index:02d}"
    if trial.error is not None:
        return f"{number} failed"
    # A setting within the budget may be unconfirmed: what did not hold need not be over it.
    return f"{number} {'held' if trial.held else 'not held'} {trial.rate:.1f}x"


def trial_tags(trial: Trial) -> dict[str, str]:
    """Why a trial failed, if it did."""
    if trial.error is None:
        return {}
    # Shown in full as the description; a tag can be searched for.
    return dict.fromkeys(("error", "mlflow.note.content"), trial.error[:_MAX_TAG])


def log_trial(client: MlflowClient, run_id: str, trial: Trial, end: int) -> None:
    """Logs a trial to its run, and ends it at that many milliseconds since 1970."""
    from mlflow.entities import Param

    params = [Param("phase", trial.phase), *_scheme_params(client, run_id, trial.schemes)]
    client.log_batch(run_id, metrics_of(trial, _TRIAL_METRICS), params, synchronous=True)
    status = "FINISHED" if trial.error is None else "FAILED"
    # MLflow prints two lines of links for every run that ends on a server: one pair is enough.
    with redirect_stdout(io.StringIO()):
        client.set_terminated(run_id, status, end_time=end)


def _scheme_params(
    client: MlflowClient, run_id: str, schemes: Mapping[str, Form | None]
) -> list[Param]:
    """One parameter a layer, or ``schemes.json`` where that would be too many or bad names."""
    from mlflow.entities import Param

    texts = {name: "float" if s is None else str(s) for name, s in schemes.items()}
    if len(texts) <= _MAX_LAYERS and all(map(_PARAM_NAME.fullmatch, texts)):
        return [Param(f"scheme.{name}" if name else "scheme", text) for name, text in texts.items()]
    client.log_text(run_id, json.dumps(texts, indent=2, ensure_ascii=False), "schemes.json")
    return [Param("schemes", f"{len(texts)} layers, see schemes.json")]


def metrics_of(source: TuneResult | Trial, names: Sequence[str], **more: float) -> list[Metric]:
    """Numbers of a result or trial: MLflow has no notion of a metric that does not exist."""
    from mlflow.entities import Metric

    values: dict[str, float | None] = {**more}
    for name in names:
        value = getattr(source, name)
        if name.endswith("interval"):
            loss = name.replace("interval", "loss")
            values[f"{loss}_low"], values[f"{loss}_high"] = value or (None, None)
        else:
            values[name] = value
    now = milliseconds(time.time())
    return [
        Metric(name, float(value), now, 0)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def milliseconds(seconds: float) -> int:
    """A time as MLflow counts it."""
    return round(seconds * 1000)
