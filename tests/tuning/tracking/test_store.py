"""The store: chosen, shared, away or failing."""

import os
import socket
import sys
from pathlib import Path

import pytest

from tests.tuning.tracking.runs import EXPERIMENT, result
from vq_plugin.tuning.tracking import TrackingError, ensure_experiment, log_run

mlflow = pytest.importorskip("mlflow")


def test_every_call_adds_a_run(client: "mlflow.MlflowClient", uri: str, folder: Path) -> None:
    ids = {
        log_run(result(), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
        for _ in range(2)
    }
    assert len(ids) == 2
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    assert len(client.search_runs([found.experiment_id])) == 6


def test_mlflow_state_of_the_caller_stays(
    client: "mlflow.MlflowClient", uri: str, folder: Path, template: bytes, tmp_path: Path
) -> None:
    (tmp_path / "own.db").write_bytes(template)
    own = f"sqlite:///{tmp_path}/own.db"
    environment = dict(os.environ)
    try:
        mlflow.set_tracking_uri(own)
        own_client = mlflow.MlflowClient(own)
        with mlflow.start_run(experiment_id=own_client.create_experiment("mine")) as active:
            set_by_caller = dict(os.environ)
            log_run(result(), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
            assert mlflow.get_tracking_uri() == own
            assert mlflow.active_run().info.run_id == active.info.run_id
            assert dict(os.environ) == set_by_caller
            mlflow.log_metric("mine", 1)
        run = own_client.get_run(active.info.run_id)
        assert (run.data.params, run.data.metrics) == ({}, {"mine": 1})
        assert own_client.get_experiment_by_name(EXPERIMENT) is None
    finally:
        mlflow.set_tracking_uri(None)
        os.environ.clear()
        os.environ.update(environment)


def test_without_a_uri_mlflow_chooses(
    client: "mlflow.MlflowClient", uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    run_id = log_run(result(), folder=folder, recipe=None, experiment=EXPERIMENT)
    assert client.get_run(run_id).info.status == "FINISHED"


def test_a_store_that_fails_midway_leaves_a_failed_run_and_the_files(
    client: "mlflow.MlflowClient", uri: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = {path: path.read_bytes() for path in folder.iterdir()}

    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left on the artifact store\nwith details")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    with pytest.raises(TrackingError, match=r"its files are in .*digits: no space left") as e:
        log_run(result(), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    assert "\n" not in str(e.value)
    found = client.get_experiment_by_name(EXPERIMENT)
    assert found is not None
    (run,) = client.search_runs([found.experiment_id])
    assert run.info.status == "FAILED"
    assert {path: path.read_bytes() for path in folder.iterdir()} == kept


def test_a_server_that_is_away(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        away = f"http://127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(TrackingError, match="cannot open experiment 'compression'"):
            ensure_experiment(EXPERIMENT, away)


def test_a_server_that_went_away_during_the_search(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    with pytest.raises(TrackingError, match=r"its files are in .*digits: MLflow cannot open"):
        log_run(
            result(),
            folder=folder,
            recipe=None,
            experiment=EXPERIMENT,
            tracking_uri="http://127.0.0.1:9",
        )


def test_a_deleted_experiment(client: "mlflow.MlflowClient", uri: str) -> None:
    client.delete_experiment(ensure_experiment(EXPERIMENT, uri))
    with pytest.raises(TrackingError, match="restore it"):
        ensure_experiment(EXPERIMENT, uri)


def test_an_experiment_that_another_job_creates_in_between(
    client: "mlflow.MlflowClient", uri: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    create = mlflow.MlflowClient.create_experiment

    def create_twice(self: "mlflow.MlflowClient", *values: object, **named: object) -> str:
        create(self, *values, **named)
        return str(create(self, *values, **named))

    monkeypatch.setattr(mlflow.MlflowClient, "create_experiment", create_twice)
    found = ensure_experiment(EXPERIMENT, uri)
    assert client.get_experiment(found).name == EXPERIMENT


def test_without_mlflow_the_remedy_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "mlflow", None)
    with pytest.raises(TrackingError, match=r"pip install vq-plugin\[mlops\]"):
        ensure_experiment(EXPERIMENT)
