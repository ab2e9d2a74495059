"""An empty MLflow store, and the folder of a run."""

import os
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    import mlflow

# Read by MLflow when it is imported: tests send nobody a message.
os.environ["MLFLOW_DISABLE_TELEMETRY"] = "true"


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An empty store: creating its tables takes seconds, copying them does not."""
    mlflow = pytest.importorskip("mlflow")
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
    client: mlflow.MlflowClient = pytest.importorskip("mlflow").MlflowClient(uri)
    return client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    path = tmp_path / "runs" / "digits"
    path.mkdir(parents=True)
    (path / "report.json").write_text('{"passed": true}\n')
    (path / "report.html").write_text("<!doctype html><title>Größe</title>")
    (path / "model.vq").write_bytes(bytes(range(256)) * 40)
    return path
