"""Runs that appear while the search goes on."""

import logging
from dataclasses import replace
from pathlib import Path

import pytest

from tests.tuning.tracking.runs import EXPERIMENT, SMALL, children, result, trial
from vq_plugin.tuning.result import Trial
from vq_plugin.tuning.tracking import TrackedRun

mlflow = pytest.importorskip("mlflow")


def parents(client: "mlflow.MlflowClient") -> list["mlflow.entities.Run"]:
    found = client.get_experiment_by_name(EXPERIMENT)
    runs = client.search_runs([found.experiment_id]) if found else []
    return [run for run in runs if "mlflow.parentRunId" not in run.data.tags]


def test_children_appear_as_trials_end(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    done = result()
    with TrackedRun("digits", EXPERIMENT, uri) as run:
        assert parents(client) == []
        for count, each in enumerate(done.trials, start=1):
            run.trial(each)
            (parent,) = parents(client)
            assert parent.info.status == "RUNNING"
            assert len(children(client, parent.info.run_id)) == count
        assert run.finish(done, folder=folder) == parent.info.run_id
    (parent,) = parents(client)
    assert (parent.info.status, parent.info.run_name) == ("FINISHED", "digits held 1.4x")
    runs = children(client, parent.info.run_id)
    assert [run.info.run_name for run in runs] == ["01 not held 3.5x", "02 held 3.5x"]
    assert [run.data.tags.get("chosen") for run in runs] == [None, "true"]


def test_what_the_end_says_of_a_trial_corrects_its_run(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    lucky = trial(SMALL)
    with TrackedRun("digits", EXPERIMENT, uri) as run:
        run.trial(lucky)
        # Not confirmed by the samples that the search did not see.
        missed = result(trials=(replace(lucky, held=False),), passed=False, schemes=None)
        parent = run.finish(missed, folder=folder)
    (child,) = children(client, parent)
    assert (child.info.run_name, child.data.metrics["held"]) == ("01 not held 3.5x", 0)


@pytest.mark.parametrize(
    ("error", "status"), [(KeyboardInterrupt(), "KILLED"), (ValueError(), "FAILED")]
)
def test_a_search_that_does_not_end_leaves_no_run_that_goes_on(
    client: "mlflow.MlflowClient", uri: str, error: BaseException, status: str
) -> None:
    def search() -> None:
        with TrackedRun("digits", EXPERIMENT, uri) as run:
            run.trial(trial(SMALL))
            raise error

    with pytest.raises(type(error)):
        search()
    (parent,) = parents(client)
    assert parent.info.status == status


def test_a_store_that_is_away_for_a_while_stops_nothing_and_loses_nothing(
    client: "mlflow.MlflowClient",
    uri: str,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    tries: list[Trial] = []

    def refuse(*_: object, **__: object) -> None:
        tries.append(trial(SMALL))
        raise OSError("no route to host")

    caplog.set_level(logging.WARNING, "vq_plugin")
    done = result()
    with TrackedRun("digits", EXPERIMENT, uri) as run:
        with monkeypatch.context() as patch:
            patch.setattr(mlflow.MlflowClient, "create_run", refuse)
            for each in done.trials:
                run.trial(each)
        parent = run.finish(done, folder=folder)
    # One that waits for its time-out is enough.
    assert len(tries) == 1
    (record,) = caplog.records
    assert "no route to host; it is tried again" in record.getMessage()
    assert len(children(client, parent)) == 2
