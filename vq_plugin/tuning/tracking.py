"""The search as runs of MLflow: one parent run, and a child run per trial."""

from __future__ import annotations

import io
import json
import logging
import math
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vq_plugin.select import Form
from vq_plugin.summary import summary
from vq_plugin.tuning.result import MODEL_FILE, PAGE_FILE, REPORT_FILE, Trial, TuneResult

if TYPE_CHECKING:
    from mlflow import MlflowClient
    from mlflow.entities import Metric, Param

_log = logging.getLogger(__name__)

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


class TrackedRun:
    """A search as a run of MLflow, from its first trial on; a context manager.

    The parent run holds the budget and the chosen schemes as parameters, the metrics of both
    splits, and the files as artifacts. Each trial is a child run; one that failed has the status
    FAILED and the tag ``error``. MLflow's own settings and the active run stay as they are. The
    parent is RUNNING until :meth:`finish`; where the block is left before, FAILED, or KILLED by a
    signal.

    What MLflow refuses while the search goes on is logged once as a warning, and tried again by
    :meth:`finish`: a server that is away stops no search.

    Args:
        name: Name of the parent run; the outcome is added to it.
        experiment: Name of the experiment; created if it does not exist.
        tracking_uri: Where MLflow keeps its runs; ``None`` leaves it to MLflow
            (``MLFLOW_TRACKING_URI``).
        start: When the search began, in seconds since 1970; ``None`` is now.

    Example::

        with TrackedRun("digits", "compression") as run:
            result = vq.tune(model, evaluate, folder="runs/digits", callback=run.trial)
            run_id = run.finish(result, folder=Path("runs/digits"))
    """

    def __init__(
        self,
        name: str,
        experiment: str,
        tracking_uri: str | None = None,
        start: float | None = None,
    ) -> None:
        self.experiment, self._name, self._uri = experiment, name, tracking_uri
        self._start = time.time() if start is None else start
        self._parent: str | None = None
        self._trials: list[tuple[str, Trial]] = []
        self._failing = False

    def __enter__(self) -> Self:
        """Begins nothing yet: what is wrong before the first trial is no run."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        """Half a run must not look like one that is still going on."""
        if error is not None and self._parent is not None:
            status = "FAILED" if isinstance(error, Exception) else "KILLED"
            with suppress(Exception):
                _client(self._uri).set_terminated(self._parent, status)

    def trial(self, trial: Trial) -> None:
        """Adds a trial that has just ended; the ``callback`` of :func:`vq_plugin.tune`."""
        if self._failing:
            return
        try:
            self._add(trial, time.time())
        except TrackingError as error:
            self._failing = True
            _log.warning("%s; it is tried again after the search", error)

    def finish(self, result: TuneResult, *, folder: Path, recipe: Path | None = None) -> str:
        """Ends the run.

        Args:
            result: The result of the search; trials that are not there yet are added.
            folder: Folder with ``report.json``, ``report.html`` and ``model.vq``, as far as they
                were written.
            recipe: The recipe, if there is one.

        Returns:
            Id of the parent run.

        Raises:
            TrackingError: If the run could not be logged. The files in ``folder`` stay.
        """
        with _explained(f"the run is not in MLflow, its files are in {folder}"):
            client, parent = self._begun()
            try:
                _log_parent(client, parent, result, self._name)
                for path in _files(result, folder, recipe):
                    client.log_artifact(parent, str(path))
                missing = result.trials[len(self._trials) :]
                end = time.time() - sum(trial.seconds for trial in missing)
                for trial in missing:
                    end += trial.seconds
                    self._add(trial, end)
                self._correct(client, result)
                client.set_terminated(parent, "FINISHED")
            except BaseException:
                with suppress(Exception):
                    client.set_terminated(parent, "FAILED")
                raise
        return parent

    def _begun(self) -> tuple[MlflowClient, str]:
        """The client and the parent run, which is there from now on."""
        if self._parent is None:
            experiment_id = ensure_experiment(self.experiment, self._uri)
            client = _client(self._uri)
            parent = client.create_run(
                experiment_id,
                start_time=_milliseconds(self._start),
                run_name=self._name,
                tags=_context(),
            )
            self._parent, self._experiment_id = str(parent.info.run_id), experiment_id
            return client, self._parent
        return _client(self._uri), self._parent

    def _add(self, trial: Trial, end: float) -> None:
        with _explained("a trial is not in MLflow"):
            client, parent = self._begun()
            run_id = client.create_run(
                self._experiment_id,
                start_time=_milliseconds(end - trial.seconds),
                run_name=_trial_name(len(self._trials) + 1, trial),
                tags={**_context(), "mlflow.parentRunId": parent, **_trial_tags(trial)},
            ).info.run_id
            _log_trial(client, run_id, trial, _milliseconds(end))
            self._trials.append((run_id, trial))

    def _correct(self, client: MlflowClient, result: TuneResult) -> None:
        """What the end of a search says of its trials: which one was chosen, which ones held."""
        pairs = zip(self._trials, result.trials, strict=True)
        for index, ((run_id, old), trial) in enumerate(pairs):
            if index == result.chosen_trial:
                client.set_tag(run_id, "chosen", "true")
            if (old.held, old.harm) != (trial.held, trial.harm):
                client.set_tag(run_id, "mlflow.runName", _trial_name(index + 1, trial))
                client.log_batch(run_id, _metrics(trial, ("held", "harm")), synchronous=True)


def log_run(
    result: TuneResult,
    *,
    folder: Path,
    recipe: Path | None,
    experiment: str,
    tracking_uri: str | None = None,
) -> str:
    """Logs a finished search to MLflow, as :class:`TrackedRun` does. Every call adds a run.

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
    start = time.time() - result.search_seconds - sum(trial.seconds for trial in result.trials)
    name = folder.name if recipe is None else recipe.stem
    with TrackedRun(name, experiment, tracking_uri, start) as run:
        return run.finish(result, folder=folder, recipe=recipe)


def _context() -> dict[str, str]:
    """Who started what: MLflow's client leaves these tags to the caller."""
    from mlflow.tracking.context.registry import resolve_tags

    tags: dict[str, str] = resolve_tags()
    return tags


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


def _log_parent(client: MlflowClient, run_id: str, result: TuneResult, name: str) -> None:
    from mlflow.entities import Param, RunTag

    nbytes = summary(result.model, rest=result.rest).model_file_nbytes
    exports = {
        f"export.{export.target}.{name}": value
        for export in result.exports
        for name in ("nbytes", "agreement", "error")
        if (value := getattr(export, name)) is not None
    }
    counts = {"nbytes": nbytes, "trials": len(result.trials)}
    metrics = _metrics(result, _RESULT_METRICS, **counts, **exports)
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


def _trial_name(index: int, trial: Trial) -> str:
    # How many there will be is not known while the search goes on.
    number = f"{index:02d}"
    if trial.error is not None:
        return f"{number} failed"
    # A setting within the budget may be unconfirmed: what did not hold need not be over it.
    return f"{number} {'held' if trial.held else 'not held'} {trial.rate:.1f}x"


def _trial_tags(trial: Trial) -> dict[str, str]:
    if trial.error is None:
        return {}
    # Shown in full as the description; a tag can be searched for.
    return dict.fromkeys(("error", "mlflow.note.content"), trial.error[:_MAX_TAG])


def _log_trial(client: MlflowClient, run_id: str, trial: Trial, end: int) -> None:
    from mlflow.entities import Param

    params = [Param("phase", trial.phase), *_scheme_params(client, run_id, trial.schemes)]
    client.log_batch(run_id, _metrics(trial, _TRIAL_METRICS), params, synchronous=True)
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
    names += [export.file for export in result.exports]
    written = [folder / name for name in names if (folder / name).exists()]
    return written if recipe is None else [recipe, *written]


def _milliseconds(seconds: float) -> int:
    return round(seconds * 1000)
