"""``vq-plugin tune --mlflow``: the run is tracked, and the exit code stays the verdict's."""

import os
from pathlib import Path

import pytest

from vq_plugin.cli import main

# Read by MLflow when it is imported: tests send nobody a message.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"
mlflow = pytest.importorskip("mlflow")
RECIPE = """\
version: 1
model: vq_plugin.workloads.digits:model
quantization:
  calibration: vq_plugin.workloads.digits:calibration
  model_wise:
    scheme: [{schemes}]
evaluation:
  tuning: vq_plugin.workloads.digits:evaluate
  test: vq_plugin.workloads.digits:test
tuning:
  accuracy_criterion: {{relative: {limit}}}
  exit_policy: {{max_trials: 4}}
output: out
"""


@pytest.fixture
def uri(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.chdir(tmp_path)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", uri)
    return uri


def tune(limit: float = 0.01, schemes: str = "km(k=2), km(k=16), km(k=32)") -> int:
    Path("release.yaml").write_text(RECIPE.format(limit=limit, schemes=schemes))
    return main(["tune", "release.yaml", "--mlflow", "releases"])


def test_the_run_and_its_files_are_tracked(uri: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert tune() == 0
    client = mlflow.MlflowClient(uri)
    experiment = client.get_experiment_by_name("releases")
    assert experiment is not None
    runs = client.search_runs([experiment.experiment_id])
    (parent,) = [run for run in runs if "mlflow.parentRunId" not in run.data.tags]
    assert parent.info.run_id in capsys.readouterr().out
    assert parent.data.tags["passed"] == "true"
    assert len(runs) == 1 + parent.data.metrics["trials"]
    assert sum("chosen" in run.data.tags for run in runs) == 1
    for name in ("release.yaml", "out/model.vq", "out/report.json", "out/report.html"):
        back = client.download_artifacts(parent.info.run_id, Path(name).name)
        assert Path(back).read_bytes() == Path(name).read_bytes(), name


def test_a_store_that_fails_after_the_search_does_not_change_the_verdict(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(mlflow.MlflowClient, "log_artifact", refuse)
    assert tune() == 0
    assert "not in MLflow" in capsys.readouterr().err
    assert Path("out/model.vq").exists()
    assert tune(limit=1e-9, schemes="km(k=2)") == 3


def test_a_server_that_is_away_is_noticed_before_the_search(
    uri: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://127.0.0.1:9")
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "0")
    assert tune() == 2
    assert "cannot open experiment 'releases'" in capsys.readouterr().err
    assert not Path("out").exists()
