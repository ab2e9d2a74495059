"""Fits and trials on a real Dask cluster of two worker processes."""

import os
import signal
import threading
import time
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.tuning import TuneResult
from vq_plugin.tuning.cluster import dask_cluster

distributed = pytest.importorskip("distributed", reason="the extra mlops is not installed")


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(32, 48), nn.ReLU(), nn.Linear(48, 24), nn.Linear(24, 8)).eval()


INPUTS = torch.randn(400, 32, generator=torch.Generator().manual_seed(1))


class Agreement:
    """One result per sample: whether the decision is that of the float model."""

    def __init__(self, seconds: float = 0.0) -> None:
        with torch.no_grad():
            self.labels = network()(INPUTS).argmax(1)
        self.seconds = seconds

    def __call__(self, model: nn.Module) -> Tensor:
        time.sleep(self.seconds)
        with torch.no_grad():
            return model(INPUTS).argmax(1) == self.labels


def tune(folder: Path, evaluate: Agreement, *, workers: int, backend: str) -> TuneResult:
    return vq.tune(
        network(),
        evaluate,
        vq.LossBudget(relative=0.1),
        [INPUTS[:100]],
        candidates=[vq.KM(k=2), vq.KM(k=4), vq.KM(k=16), vq.PQ(k=8, dim=2, codebooks="tensor")],
        max_trials=12,
        workers=workers,
        backend=backend,
        folder=folder,
    )


def findings(result: TuneResult, folder: Path) -> list[object]:
    trials = [(trial.schemes, trial.score, trial.held) for trial in result.trials]
    return [result.schemes, result.loss, trials, (folder / "model.vq").read_bytes()]


def test_a_cluster_gives_the_result_of_one_process(tmp_path: Path) -> None:
    alone = tune(tmp_path / "alone", Agreement(), workers=1, backend="loky")
    with dask_cluster(workers=2):
        both = tune(tmp_path / "both", Agreement(), workers=2, backend="dask")
    assert alone.passed
    assert findings(both, tmp_path / "both") == findings(alone, tmp_path / "alone")


def test_a_worker_that_dies_costs_only_its_task(tmp_path: Path) -> None:
    alone = tune(tmp_path / "alone", Agreement(), workers=1, backend="loky")
    killed = []

    def kill_one() -> None:
        client = distributed.get_client()
        time.sleep(1.5)
        pid = next(iter(client.run(os.getpid).values()))
        os.kill(pid, signal.SIGKILL)
        killed.append(pid)

    with dask_cluster(workers=2):
        killer = threading.Thread(target=kill_one)
        killer.start()
        result = tune(tmp_path / "both", Agreement(seconds=0.4), workers=2, backend="dask")
        killer.join()
    assert killed
    assert all(trial.error is None for trial in result.trials)
    assert findings(result, tmp_path / "both") == findings(alone, tmp_path / "alone")


def test_a_scheduler_that_is_away_is_an_error() -> None:
    with (
        pytest.raises(ValueError, match=r"no Dask scheduler at .tcp://127\.0\.0\.1:9"),
        dask_cluster(workers=2, scheduler="tcp://127.0.0.1:9"),
    ):
        pass
