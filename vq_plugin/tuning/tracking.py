"""The search as runs of MLflow: one parent run, and a child run per trial."""

from __future__ import annotations

import io
import json
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from vq_plugin.schemes import Scheme
from vq_plugin.summary import summary
from vq_plugin.tuning.result import MODEL_FILE, PAGE_FILE, REPORT_FILE, Trial, TuneResult

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
_TRIAL_METRICS = ("score", "loss", "interval", "rate", "nbytes", "harm", "held", "seconds")


class TrackingError(RuntimeError):
    """A run could not be tracked; the message says why and what to do."""


def ensure_experiment(experiment: str, tracking_uri: str | None = None) -> str:
    """Finds an experiment of MLflow or creates it.

    Call it before a long search: what would keep the search from being tracked shows at once.

    Args:
        experiment: Name of the experiment.
        tracking_uri: Where MLflow keeps its runs; ``None`` leaves it to MLflow
            (``MLFLOW_TRACKING_URI``).

    Returns:
        The experiment's id.

    Raises:
        TrackingError: If MLflow is not installed, does not answer, or the experiment is deleted.

    Example::

        ensure_experiment("compression", "http://mlflow.example:5000")
    """
    client = _client(tracking_uri)
    with _explained(f"MLflow cannot open experiment {experiment!r}"):
        found = client.get_experiment_by_name(experiment)
        if found is None:
            try:
                return client.create_experiment(experiment)
            except Exception:
                # Another job may have created it in between.
                found = client.get_experiment_by_name(experiment)
                if found is None:
                    raise
    if found.lifecycle_stage == "deleted":
        raise TrackingError(
            f"MLflow's experiment {experiment!r} is deleted: "
            f"restore it (mlflow experiments restore --experiment-id {found.experiment_id}) "
            "or take another name"
        )
    return str(found.experiment_id)


def log_run(
    result: TuneResult,
    *,
    folder: Path,
    recipe: Path | None,
    experiment: str,
    tracking_uri: str | None = None,
) -> str:
    """Logs a finished search to MLflow. Every call adds a run.

    The parent run holds the budget and the chosen schemes as parameters, the metrics of both
    splits, and the files as artifacts. Each trial is a child run; one that failed has the status
    FAILED and the tag ``error``. MLflow's own settings and the active run stay as they are.

    The runs are dated as if the trials had been evaluated one after another until now, so that
    MLflow shows their order and how long each took.

    Args:
        result: The result of the search.
        folder: Folder with ``report.json``, ``report.html`` and ``model.vq``, as far as they
            were written.
        recipe: The recipe, if there is one.
        experiment: Name of the experiment; created if it does not exist.
        tracking_uri: Where MLflow keeps its runs; ``None`` leaves it to MLflow
            (``MLFLOW_TRACKING_URI``).

    Returns:
        Id of the parent run.

    Raises:
        TrackingError: If the run could not be logged. The files in ``folder`` stay.

    Example::

        run_id = log_run(
            result, folder=Path("runs/digits"), recipe=None, experiment="compression"
        )
    """
    with _explained(f"the run is not in MLflow, its files are in {folder}"):
        experiment_id = ensure_experiment(experiment, tracking_uri)
        client = _client(tracking_uri)

        from mlflow.tracking.context.registry import resolve_tags

        start = time.time() - result.search_seconds - sum(trial.seconds for trial in result.trials)
        # Who started what: MLflow's client leaves these tags to the caller.
        context: dict[str, str] = resolve_tags()
        parent: str = client.create_run(
            experiment_id,
            start_time=_milliseconds(start),
            run_name=_parent_name(result, folder.name if recipe is None else recipe.stem),
            tags={**context, **_parent_tags(result)},
        ).info.run_id
        try:
            _log_parent(client, parent, result)
            for path in _files(result, folder, recipe):
                client.log_artifact(parent, str(path))
            start += result.search_seconds
            for index, trial in enumerate(result.trials, start=1):
                chosen = index - 1 == result.chosen_trial
                run_id = client.create_run(
                    experiment_id,
                    start_time=_milliseconds(start),
                    run_name=_trial_name(index, trial, len(result.trials)),
                    tags={**context, "mlflow.parentRunId": parent, **_trial_tags(trial, chosen)},
                ).info.run_id
                start += trial.seconds
                _log_trial(client, run_id, trial, _milliseconds(start))
            client.set_terminated(parent, "FINISHED")
        except BaseException:
            # Half a run must not look like one that is still going on.
            with suppress(Exception):
                client.set_terminated(parent, "FAILED")
            raise
    return parent


def _client(tracking_uri: str | None) -> MlflowClient:
    try:
        from mlflow import MlflowClient
    except ModuleNotFoundError as error:
        raise TrackingError(
            f"{error}; tracking needs MLflow: pip install vq-plugin[mlops]"
        ) from error
    with _explained("MLflow cannot use the tracking URI"):
        return MlflowClient(tracking_uri=tracking_uri)


@contextmanager
def _explained(what: str) -> Iterator[None]:
    """Turns what MLflow raises, which includes the errors of its stores, into one kind."""
    try:
        yield
    except Exception as error:
        reason = str(error).strip().partition("\n")[0]
        raise TrackingError(f"{what}: {reason or type(error).__name__}") from error


# The table of runs shows names at once and metrics only on demand: names tell the outcome.
def _parent_name(result: TuneResult, name: str) -> str:
    return f"{name} {f'held {result.rate:.1f}x' if result.passed else 'not reached'}"


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
    shown = f"{loss:.4g}" if result.budget.relative is None else f"{loss:.2%}"
    return (
        f"Within the budget of {result.budget}: {result.rate:.1f}x smaller, "
        f"loss {shown} on the {split} split."
    )


def _log_parent(client: MlflowClient, run_id: str, result: TuneResult) -> None:
    from mlflow.entities import Param

    nbytes = summary(result.model, rest=result.rest).model_file_nbytes
    metrics = _metrics(result, _RESULT_METRICS, nbytes=nbytes, trials=len(result.trials))
    better = "higher" if result.budget.higher_is_better else "lower"
    params = [
        Param("budget", str(result.budget)),
        Param("metric", f"{better} is better"),
        *_scheme_params(client, run_id, result.schemes or {}),
    ]
    client.log_batch(run_id, metrics, params, synchronous=True)


def _trial_name(index: int, trial: Trial, count: int) -> str:
    number = f"{index:0{len(str(count))}d}"
    if trial.error is not None:
        return f"{number} failed"
    return f"{number} {'held' if trial.held else 'over'} {trial.rate:.1f}x"


def _trial_tags(trial: Trial, chosen: bool) -> dict[str, str]:
    tags = {"chosen": "true"} if chosen else {}
    if trial.error is not None:
        # Shown in full as the description; a tag can be searched for.
        tags["error"] = tags["mlflow.note.content"] = trial.error[:_MAX_TAG]
    return tags


def _log_trial(client: MlflowClient, run_id: str, trial: Trial, end: int) -> None:
    from mlflow.entities import Param

    params = [Param("phase", trial.phase), *_scheme_params(client, run_id, trial.schemes)]
    client.log_batch(run_id, _metrics(trial, _TRIAL_METRICS), params, synchronous=True)
    status = "FINISHED" if trial.error is None else "FAILED"
    # MLflow prints two lines of links for every run that ends on a server: one pair is enough.
    with redirect_stdout(io.StringIO()):
        client.set_terminated(run_id, status, end_time=end)


def _scheme_params(
    client: MlflowClient, run_id: str, schemes: Mapping[str, Scheme | None]
) -> list[Param]:
    """One parameter a layer, or ``schemes.json`` where that would be too many or bad names."""
    from mlflow.entities import Param

    texts = {name: "float" if s is None else str(s) for name, s in schemes.items()}
    if len(texts) <= _MAX_LAYERS and all(map(_PARAM_NAME.fullmatch, texts)):
        return [Param(f"scheme.{name}" if name else "scheme", text) for name, text in texts.items()]
    client.log_text(run_id, json.dumps(texts, indent=2, ensure_ascii=False), "schemes.json")
    return [Param("schemes", f"{len(texts)} layers, see schemes.json")]


def _metrics(source: TuneResult | Trial, names: Sequence[str], **more: float) -> list[Metric]:
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
    now = _milliseconds(time.time())
    return [
        Metric(name, float(value), now, 0)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    ]


def _files(result: TuneResult, folder: Path, recipe: Path | None) -> list[Path]:
    # A model file beside a verdict that is not "passed" comes from an earlier run.
    names = [REPORT_FILE, PAGE_FILE, *([MODEL_FILE] if result.passed else [])]
    written = [folder / name for name in names if (folder / name).is_file()]
    return written if recipe is None else [recipe, *written]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
