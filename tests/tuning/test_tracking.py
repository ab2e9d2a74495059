"""Runs in MLflow, read back from a real store."""

import json
import math
import os
import socket
import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.schemes import Scheme
from vq_plugin.tuning.result import Trial, TuneResult
from vq_plugin.tuning.tracking import TrackingError, ensure_experiment, log_run

# Read by MLflow when it is imported: tests send nobody a message.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow")

EXPERIMENT = "compression"
SMALL: dict[str, Scheme | None] = {"0": vq.KM(k=4), "2": None}
SMALLER: dict[str, Scheme | None] = {"0": vq.KM(k=2), "2": vq.PQ(k=2, dim=2)}


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store: creating its tables takes seconds, copying them does not."""
    path = tmp_path_factory.mktemp("store") / "mlflow.db"
    mlflow.MlflowClient(f"sqlite:///{path}").search_experiments()
    return path.read_bytes()


@pytest.fixture
def uri(template: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A SQLite store; its artifacts go to the current folder."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mlflow.db").write_bytes(template)
    return f"sqlite:///{tmp_path}/mlflow.db"


@pytest.fixture
def client(uri: str) -> "mlflow.MlflowClient":
    return mlflow.MlflowClient(uri)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "digits"
    path.mkdir(parents=True)
    (path / "report.json").write_text('{"passed": true}\n')
    (path / "report.html").write_text("<!doctype html><title>Größe</title>")
    (path / "model.vq").write_bytes(bytes(range(256)) * 40)
    return path


def trial(schemes: Mapping[str, Scheme | None], score: float = 0.94, **changes: object) -> Trial:
    values: dict[str, object] = {
        "schemes": schemes,
        "nbytes": 200,
        "rate": 3.5,
        "harm": 0.01,
        "score": score,
        "loss": 0.95 - score,
        "interval": None,
        "held": score >= 0.93,
        "phase": "frontier",
        "seconds": 2.0,
    }
    return Trial(**{**values, **changes})  # type: ignore[arg-type]


def result(**changes: object) -> TuneResult:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4))
    values: dict[str, object] = {
        "model": vq.compress(model, {"0": vq.KM(k=4)}),
        "schemes": SMALL,
        "passed": True,
        "baseline": 0.95,
        "score": 0.94,
        "loss": 0.01,
        "interval": (-0.002, 0.022),
        "rate": 1.4,
        "trials": (trial(SMALLER, score=0.5), trial(SMALL, phase="local")),
        "layers": (),
        "frontier": (),
        "budget": vq.LossBudget(absolute=0.02),
        "search_seconds": 1.5,
    }
    return TuneResult(**{**values, **changes})  # type: ignore[arg-type]


def children(client: "mlflow.MlflowClient", parent: str) -> list["mlflow.entities.Run"]:
    return list(
        client.search_runs(
            [client.get_run(parent).info.experiment_id],
            f"tags.mlflow.parentRunId = '{parent}'",
            order_by=["attributes.start_time ASC"],
        )
    )


def test_the_parent_holds_budget_schemes_and_metrics(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    found = result(
        test_baseline=0.94, test_score=0.925, test_loss=0.015, test_interval=(0.001, 0.029)
    )
    run_id = log_run(found, folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits held 1.4x"
    assert run.data.params == {
        "budget": "0.02 absolute",
        "metric": "higher is better",
        "scheme.0": "km(k=4)",
        "scheme.2": "float",
    }
    sizes = vq.summary(found.model)
    assert run.data.metrics == {
        "baseline": 0.95,
        "score": 0.94,
        "loss": 0.01,
        "loss_low": -0.002,
        "loss_high": 0.022,
        "test_baseline": 0.94,
        "test_score": 0.925,
        "test_loss": 0.015,
        "test_loss_low": 0.001,
        "test_loss_high": 0.029,
        "rate": 1.4,
        "nbytes": sizes.file_nbytes + sizes.other_nbytes,
        "trials": 2,
        "resumed": 0,
        "search_seconds": 1.5,
    }
    assert run.data.tags["passed"] == "true"
    assert run.data.tags["vq_plugin.version"] == vq.__version__
    assert run.data.tags["mlflow.note.content"] == (
        "Within the budget of 0.02 absolute: 1.4x smaller, loss 0.015 on the test split."
    )
    assert {"stopped", "cut"}.isdisjoint(run.data.tags)


def test_every_trial_is_a_child_in_order(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    trials = tuple(trial(SMALL, seconds=i / 2) for i in range(1, 13))
    parent = log_run(
        result(trials=trials), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri
    )
    runs = children(client, parent)
    assert [run.info.run_name for run in runs] == [f"{i:02d} held 3.5x" for i in range(1, 13)]
    took = [run.info.end_time - run.info.start_time for run in runs]
    assert took == pytest.approx([1000 * one.seconds for one in trials], abs=1)
    whole = client.get_run(parent).info
    assert whole.start_time <= runs[0].info.start_time
    assert whole.end_time >= runs[-1].info.end_time - 1


def test_a_child_holds_schemes_and_metrics(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    trials = (trial(SMALLER, score=0.5), trial(SMALL, interval=(-0.01, 0.03), phase="local"))
    parent = log_run(
        result(trials=trials), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri
    )
    first, second = children(client, parent)
    assert first.data.params == {
        "phase": "frontier",
        "scheme.0": "km(k=2)",
        "scheme.2": "pq(k=2,dim=2)",
    }
    assert first.data.metrics == {
        "score": 0.5,
        "loss": pytest.approx(0.45),
        "rate": 3.5,
        "nbytes": 200,
        "harm": 0.01,
        "held": 0,
        "seconds": 2,
    }
    assert first.info.run_name == "1 over 3.5x"
    assert second.data.metrics["held"] == 1
    assert second.data.metrics["loss_low"] == -0.01
    assert second.data.metrics["loss_high"] == 0.03
    assert second.data.params["phase"] == "local"
    assert [run.data.tags.get("chosen") for run in (first, second)] == [None, "true"]


def test_artifacts_come_back_byte_for_byte(
    client: "mlflow.MlflowClient", uri: str, folder: Path, tmp_path: Path
) -> None:
    recipe = tmp_path / "small digits.yaml"
    recipe.write_text("version: 1\n")
    (folder / "journal.jsonl").write_text("not an artifact\n")
    run_id = log_run(
        result(), folder=folder, recipe=recipe, experiment=EXPERIMENT, tracking_uri=uri
    )
    assert client.get_run(run_id).info.run_name == "small digits held 1.4x"
    back = Path(client.download_artifacts(run_id, "", str(tmp_path)))
    files = [recipe, *(folder / name for name in ("report.json", "report.html", "model.vq"))]
    names = sorted(item.path for item in client.list_artifacts(run_id))
    assert names == sorted(path.name for path in files)
    for path in files:
        assert (back / path.name).read_bytes() == path.read_bytes(), path.name


def test_a_budget_not_reached_is_a_finished_run_without_a_model(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    model = nn.Linear(8, 8)
    missed = result(
        model=model,
        schemes=None,
        passed=False,
        score=0.95,
        loss=0.0,
        interval=None,
        rate=1.0,
        trials=(trial(SMALLER, score=0.5),),
        stopped="no setting held",
        cut="max_trials=1 cut off 3 settings",
    )
    run_id = log_run(missed, folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    run = client.get_run(run_id)
    assert run.info.status == "FINISHED"
    assert run.info.run_name == "digits not reached"
    assert run.data.tags["passed"] == "false"
    assert run.data.tags["stopped"] == "no setting held"
    assert run.data.tags["cut"] == "max_trials=1 cut off 3 settings"
    assert "not reached: no setting held" in run.data.tags["mlflow.note.content"]
    assert run.data.metrics["nbytes"] == 4 * 8 * 9
    assert [name for name in run.data.params if name.startswith("scheme")] == []
    # The model.vq in the folder is one of an earlier run.
    assert sorted(item.path for item in client.list_artifacts(run_id)) == [
        "report.html",
        "report.json",
    ]


def test_a_failed_trial_has_its_error_and_no_metric_that_is_not_a_number(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    failed = trial(
        SMALLER, score=math.nan, harm=math.inf, held=False, error="evaluate: " + "no disk " * 2000
    )
    parent = log_run(
        result(trials=(failed, trial(SMALL))),
        folder=folder,
        recipe=None,
        experiment=EXPERIMENT,
        tracking_uri=uri,
    )
    first, second = children(client, parent)
    assert (first.info.status, second.info.status) == ("FAILED", "FINISHED")
    assert [run.info.run_name for run in (first, second)] == ["1 failed", "2 held 3.5x"]
    assert first.data.tags["error"].startswith("evaluate: no disk")
    assert set(first.data.metrics) == {"rate", "nbytes", "held", "seconds"}
    assert "error" not in second.data.tags
    assert client.get_run(parent).info.status == "FINISHED"


def test_schemes_of_many_layers_are_a_file(
    client: "mlflow.MlflowClient", uri: str, folder: Path, tmp_path: Path
) -> None:
    schemes: dict[str, Scheme | None] = {
        f"blocks.{i}.fc": vq.KM(k=4) if i % 2 else None for i in range(200)
    }
    parent = log_run(
        result(schemes=schemes, trials=(trial(schemes),)),
        folder=folder,
        recipe=None,
        experiment=EXPERIMENT,
        tracking_uri=uri,
    )
    for run in (client.get_run(parent), *children(client, parent)):
        assert run.data.params["schemes"] == "200 layers, see schemes.json"
        assert len(run.data.params) <= 3
        path = client.download_artifacts(run.info.run_id, "schemes.json", str(tmp_path))
        assert json.loads(Path(path).read_text()) == {
            name: "float" if scheme is None else str(scheme) for name, scheme in schemes.items()
        }


@pytest.mark.parametrize("name", ["größe", "fc-1.weight_v", "a b"])
def test_names_that_mlflow_takes_are_parameters(
    client: "mlflow.MlflowClient", uri: str, folder: Path, name: str
) -> None:
    run_id = log_run(
        result(schemes={name: vq.KM(k=4)}, trials=()),
        folder=folder,
        recipe=None,
        experiment=EXPERIMENT,
        tracking_uri=uri,
    )
    assert client.get_run(run_id).data.params[f"scheme.{name}"] == "km(k=4)"


@pytest.mark.parametrize("name", ["a/../b", "q(1)", "x" * 300])
def test_names_that_mlflow_refuses_are_in_a_file(
    client: "mlflow.MlflowClient", uri: str, folder: Path, tmp_path: Path, name: str
) -> None:
    run_id = log_run(
        result(schemes={name: vq.KM(k=4)}, trials=()),
        folder=folder,
        recipe=None,
        experiment=EXPERIMENT,
        tracking_uri=uri,
    )
    path = client.download_artifacts(run_id, "schemes.json", str(tmp_path))
    assert json.loads(Path(path).read_text()) == {name: "km(k=4)"}


def test_the_model_itself_as_the_only_layer(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    run_id = log_run(
        result(schemes={"": vq.KM(k=4)}, trials=()),
        folder=folder,
        recipe=None,
        experiment=EXPERIMENT,
        tracking_uri=uri,
    )
    assert client.get_run(run_id).data.params["scheme"] == "km(k=4)"


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


def test_a_long_reason_is_cut_for_the_tag_only(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    long = replace(result(), passed=False, schemes=None, stopped="x" * 9000)
    run_id = log_run(long, folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    assert client.get_run(run_id).data.tags["stopped"] == "x" * 5000
