"""The search as runs of MLflow: one parent run, and a child run per trial."""

from __future__ import annotations

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from vq_plugin.tuning.result import MODEL_FILE, PAGE_FILE, REPORT_FILE, Trial, TuneResult
from vq_plugin.tuning.tracked import (
    log_parent,
    log_trial,
    metrics_of,
    milliseconds,
    trial_name,
    trial_tags,
)

if TYPE_CHECKING:
    from mlflow import MlflowClient

_log = logging.getLogger(__name__)


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
                log_parent(client, parent, result, self._name)
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
                start_time=milliseconds(self._start),
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
                start_time=milliseconds(end - trial.seconds),
                run_name=trial_name(len(self._trials) + 1, trial),
                tags={**_context(), "mlflow.parentRunId": parent, **trial_tags(trial)},
            ).info.run_id
            log_trial(client, run_id, trial, milliseconds(end))
            self._trials.append((run_id, trial))

    def _correct(self, client: MlflowClient, result: TuneResult) -> None:
        """What the end of a search says of its trials: which one was chosen, which ones held."""
        pairs = zip(self._trials, result.trials, strict=True)
        for index, ((run_id, old), trial) in enumerate(pairs):
            if index == result.chosen_trial:
                client.set_tag(run_id, "chosen", "true")
            if (old.held, old.harm) != (trial.held, trial.harm):
                client.set_tag(run_id, "mlflow.runName", trial_name(index + 1, trial))
                client.log_batch(run_id, metrics_of(trial, ("held", "harm")), synchronous=True)


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


def _files(result: TuneResult, folder: Path, recipe: Path | None) -> list[Path]:
    # A model file beside a verdict that is not "passed" comes from an earlier run.
    names = [REPORT_FILE, PAGE_FILE, *([MODEL_FILE] if result.passed else [])]
    names += [export.file for export in result.exports]
    written = [folder / name for name in names if (folder / name).exists()]
    return written if recipe is None else [recipe, *written]
