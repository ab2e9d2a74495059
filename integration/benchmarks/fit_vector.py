"""Product and residual quantization of one weight: against scikit-learn and faiss."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    Timed,
    missing_peer,
    normal_weight,
    race,
    squared_error,
)

_FORMATS = {
    "contender": "", "seconds": ".3f", "calls": "d", "of it training": ".3f",
    "time / ours": ".2f", "SSE": ".6g", "SSE / ours": ".5f",
}  # fmt: skip
_SKLEARN = "sklearn KMeans(n_init=1) per subspace"


class Decoded:
    """A decoded weight, and the seconds that a peer spent on training alone."""

    def __init__(self, weight: Tensor, training: float | None = None) -> None:
        self.weight = weight
        self.training = training


def product(report: Report, shape: tuple[int, int], k: int, dim: int, rounds: int) -> None:
    """PQ with a codebook per subspace."""
    weight = normal_weight(*shape)
    contenders: dict[str, Callable[[], Decoded]] = {
        "vq_plugin": partial(_ours, weight, vq.PQ(k=k, dim=dim)),
        _SKLEARN: partial(_sklearn_pq, weight, k, dim),
    }
    faiss = "faiss ProductQuantizer"
    if not missing_peer("faiss"):
        _faiss_pq(normal_weight(64, 64), 4, 4)
        contenders[faiss] = partial(_faiss_pq, weight, k, dim)
    _sklearn_pq(normal_weight(64, 64), 4, 32)
    timed = race(contenders, rounds)
    _tabulate(report, f"PQ k={k} dim={dim}", weight, timed)
    ours, theirs = timed["vq_plugin"], timed[_SKLEARN]
    error = squared_error(weight, ours.result.weight)
    report.checks += [
        Check("PQ: times as fast as sklearn", theirs.median / ours.median, 2, at_least=True),
        Check("PQ: SSE over sklearn's", error / squared_error(weight, theirs.result.weight), 1),
    ]
    if faiss in timed:
        training = timed[faiss].result.training
        assert training is not None
        report.checks.append(
            Check("PQ: time over faiss' training alone", ours.median / training, 2)
        )


def residual(report: Report, shape: tuple[int, int], k: int, stages: int, rounds: int) -> None:
    """RQ over whole rows, as in the paper."""
    weight = normal_weight(*shape)
    contenders: dict[str, Callable[[], Decoded]] = {
        "vq_plugin": partial(_ours, weight, vq.RQ(k=k, stages=stages))
    }
    faiss = "faiss ResidualQuantizer"
    if missing_peer("faiss"):
        report.note("faiss is not installed: RQ has no contender")
    else:
        _faiss_rq(normal_weight(64, 64), 4, 2)
        contenders[faiss] = partial(_faiss_rq, weight, k, stages)
    timed = race(contenders, rounds)
    _tabulate(report, f"RQ k={k}, {stages} stages", weight, timed)
    if faiss in timed:
        ours, theirs = timed["vq_plugin"], timed[faiss]
        training = theirs.result.training
        assert training is not None
        error = squared_error(weight, ours.result.weight)
        report.checks += [
            Check("RQ: times as fast as faiss' training alone", training / ours.median, 2,
                  at_least=True),
            Check("RQ: SSE over faiss'", error / squared_error(weight, theirs.result.weight), 1),
        ]  # fmt: skip


def _tabulate(report: Report, what: str, weight: Tensor, timed: dict[str, Timed[Decoded]]) -> None:
    table = Table(f"{what} on {'x'.join(map(str, weight.shape))} normal weights", _FORMATS)
    ours = timed["vq_plugin"]
    error = squared_error(weight, ours.result.weight)
    for name, run in timed.items():
        sse = squared_error(weight, run.result.weight)
        table.rows.append({
            "contender": name, "seconds": run.median, "calls": len(run.seconds),
            "of it training": run.result.training, "time / ours": run.median / ours.median,
            "SSE": sse, "SSE / ours": sse / error,
        })  # fmt: skip
    report.add(table)


def _ours(weight: Tensor, scheme: vq.Scheme) -> Decoded:
    return Decoded(vq.quantize_weight(weight, scheme).decode())


def _sklearn_pq(weight: Tensor, k: int, dim: int) -> Decoded:
    decoded = torch.empty_like(weight)
    for start in range(0, weight.shape[1], dim):
        points = np.ascontiguousarray(weight[:, start : start + dim].numpy())
        found = KMeans(k, n_init=1, random_state=0).fit(points)
        decoded[:, start : start + dim] = torch.from_numpy(found.cluster_centers_[found.labels_])
    return Decoded(decoded)


def _faiss_pq(weight: Tensor, k: int, dim: int) -> Decoded:
    import faiss

    length = weight.shape[1]
    quantizer = faiss.ProductQuantizer(length, length // dim, (k - 1).bit_length())
    quantizer.cp.niter = 25
    # No warning about points per center: here they are as many as there are rows.
    quantizer.cp.min_points_per_centroid = 1
    return _faiss(quantizer, weight)


def _faiss_rq(weight: Tensor, k: int, stages: int) -> Decoded:
    import faiss

    quantizer = faiss.ResidualQuantizer(weight.shape[1], stages, (k - 1).bit_length())
    quantizer.cp.min_points_per_centroid = 1
    return _faiss(quantizer, weight)


def _faiss(quantizer: object, weight: Tensor) -> Decoded:
    points = weight.numpy()
    run = race({"train": lambda: quantizer.train(points)}, 1)  # type: ignore[attr-defined]
    codes = quantizer.compute_codes(points)  # type: ignore[attr-defined]
    decoded = torch.from_numpy(quantizer.decode(codes))  # type: ignore[attr-defined]
    return Decoded(decoded, run["train"].median)
