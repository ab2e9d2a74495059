"""What a run and its trials hold, read back from a real store."""

import json
import math
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

import vq_plugin as vq
from tests.tuning.tracking.runs import EXPERIMENT, SMALL, SMALLER, children, result, trial
from vq_plugin.schemes import Scheme
from vq_plugin.tuning import Export
from vq_plugin.tuning.tracking import log_run

mlflow = pytest.importorskip("mlflow")


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
        "Within the budget of 0.02 absolute: 1.4x smaller, loss 0.0150 on the test split."
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
    assert first.info.run_name == "01 not held 3.5x"
    assert second.data.metrics["held"] == 1
    assert second.data.metrics["loss_low"] == -0.01
    assert second.data.metrics["loss_high"] == 0.03
    assert second.data.params["phase"] == "local"
    assert [run.data.tags.get("chosen") for run in (first, second)] == [None, "true"]


def test_of_one_setting_the_trial_that_was_trained_is_the_chosen_one(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    trials = (trial(SMALL, score=0.5), trial(SMALL, phase="recovery"))
    parent = log_run(
        result(trials=trials), folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri
    )
    runs = children(client, parent)
    assert [run.data.params["phase"] for run in runs] == ["frontier", "recovery"]
    assert [run.data.tags.get("chosen") for run in runs] == [None, "true"]


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
    assert [run.info.run_name for run in (first, second)] == ["01 failed", "02 held 3.5x"]
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


def test_a_long_reason_is_cut_for_the_tag_only(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    long = replace(result(), passed=False, schemes=None, stopped="x" * 9000)
    run_id = log_run(long, folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    assert client.get_run(run_id).data.tags["stopped"] == "x" * 5000


def test_exports_are_metrics_and_artifacts(
    client: "mlflow.MlflowClient", uri: str, folder: Path
) -> None:
    (folder / "model.mlpackage").mkdir()
    (folder / "model.mlpackage" / "weights").write_bytes(b"codes")
    exports = (
        Export("onnx", "model.onnx", 5, 1.0, 1e-6, "256 samples"),
        Export("coreml", "model.mlpackage", 5, 1.0, None, "1 of 1 weights"),
    )
    (folder / "model.onnx").write_bytes(b"codes")
    found = result(exports=exports)
    run_id = log_run(found, folder=folder, recipe=None, experiment=EXPERIMENT, tracking_uri=uri)
    metrics = client.get_run(run_id).data.metrics
    assert {key: value for key, value in metrics.items() if key.startswith("export.")} == {
        "export.onnx.nbytes": 5,
        "export.onnx.agreement": 1,
        "export.onnx.error": 1e-6,
        "export.coreml.nbytes": 5,
        "export.coreml.agreement": 1,
    }
    files = {each.path for each in client.list_artifacts(run_id)}
    assert files >= {"model.onnx", "model.mlpackage"}
    (weights,) = client.list_artifacts(run_id, "model.mlpackage")
    assert weights.path == "model.mlpackage/weights"
