"""Results of a search to track, and the runs that come of them."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.schemes import Scheme
from vq_plugin.tuning.result import Trial, TuneResult

if TYPE_CHECKING:
    import mlflow

EXPERIMENT = "compression"
SMALL: dict[str, Scheme | None] = {"0": vq.KM(k=4), "2": None}
SMALLER: dict[str, Scheme | None] = {"0": vq.KM(k=2), "2": vq.PQ(k=2, dim=2)}


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
