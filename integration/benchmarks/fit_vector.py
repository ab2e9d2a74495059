"""Product and residual quantization of one weight: against scikit-learn and faiss."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from sklearn.cluster import KMeans
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks import peers
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


# VGG-16's dense layers, as (out, in).
VGG_DENSE = ((4096, 25088), (4096, 4096), (1000, 4096))


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


def shared_product(report: Report, shape: tuple[int, int], k: int, dim: int, rounds: int) -> None:
    """PQ with one codebook for all subspaces, against faiss' k-means on the same points."""
    if missing_peer("faiss"):
        report.note("faiss is not installed: the shared PQ has no contender")
        return
    weight = normal_weight(*shape)
    _ours(normal_weight(64, 64), vq.PQ(k=4, dim=4, codebooks="tensor"))
    faiss_shared(normal_weight(64, 64), 4, 4, 64)
    peers = {f"faiss Kmeans, {points} points for each center": points for points in (256, 1 << 20)}
    contenders = {name: partial(faiss_shared, weight, k, dim, n) for name, n in peers.items()}
    ours = partial(_ours, weight, vq.PQ(k=k, dim=dim, codebooks="tensor"))
    timed = race({"vq_plugin": ours, **contenders}, rounds)
    _tabulate(report, f"PQ k={k} dim={dim}, one codebook", weight, timed)
    found = timed["vq_plugin"]
    error = squared_error(weight, found.result.weight)
    for name in peers:
        theirs = squared_error(weight, timed[name].result.weight)
        report.checks.append(Check(f"Shared PQ: SSE over {name}", error / theirs, 1.005))


def large_product(report: Report, shape: tuple[int, int], k: int, dim: int, rounds: int) -> None:
    """The same on a layer where scikit-learn would take minutes: against faiss' trainer."""
    if missing_peer("faiss"):
        report.note("faiss is not installed: the large PQ has no contender")
        return
    weight = normal_weight(*shape)
    _ours(normal_weight(64, 64), vq.PQ(k=4, dim=4))
    _faiss_pq(normal_weight(64, 64), 4, 4)
    timed = race(
        {
            "vq_plugin": partial(_ours, weight, vq.PQ(k=k, dim=dim)),
            "faiss ProductQuantizer": partial(_faiss_pq, weight, k, dim),
        },
        rounds,
    )
    _tabulate(report, f"Large PQ k={k} dim={dim}", weight, timed)
    ours, theirs = timed["vq_plugin"], timed["faiss ProductQuantizer"]
    assert theirs.result.training is not None
    error = squared_error(weight, ours.result.weight)
    report.checks += [
        Check("Large PQ: times as fast as faiss' training alone",
              theirs.result.training / ours.median, 5, at_least=True),
        Check("Large PQ: SSE over faiss'", error / squared_error(weight, theirs.result.weight), 1),
    ]  # fmt: skip


def model_product(
    report: Report, shapes: Sequence[tuple[int, int]], k: int, dim: int, rounds: int
) -> None:
    """PQ of the dense layers of a model, against coremltools on the last of them.

    coremltools takes many minutes for VGG-16. It fits one codebook to all sub-vectors of a layer,
    in time that grows with their number: what it takes for the last layer is scaled by the weights.
    """
    if missing_peer("coremltools"):
        report.note("coremltools is not installed: the dense layers have no contender")
        return
    weights = [normal_weight(*shape) for shape in shapes]
    _ours(normal_weight(64, 64), vq.PQ(k=4, dim=4))
    _coremltools_pq(normal_weight(64, 64), 4, 4)
    timed = race(
        {
            "vq_plugin": lambda: [_ours(weight, vq.PQ(k=k, dim=dim)) for weight in weights],
            "coremltools palettizer": lambda: [_coremltools_pq(weights[-1], k, dim)],
        },
        rounds,
        once={"coremltools palettizer"},
    )
    count = sum(weight.numel() for weight in weights)
    ours, theirs = timed["vq_plugin"], timed["coremltools palettizer"]
    scaled = theirs.median * count / weights[-1].numel()
    last = squared_error(weights[-1], ours.result[-1].weight)
    peer_last = squared_error(weights[-1], theirs.result[-1].weight)
    report.add(Table(
        f"Dense layers of {count} weights, PQ k={k} dim={dim}",
        {
            "contender": "", "seconds": ".3f", "measured on": "d", "seconds of all": ".1f",
            "SSE of the last layer": ".6g",
        },
        [
            {"contender": "vq_plugin", "seconds": ours.median, "measured on": count,
             "seconds of all": ours.median, "SSE of the last layer": last},
            {"contender": "coremltools palettizer", "seconds": theirs.median,
             "measured on": weights[-1].numel(), "seconds of all": scaled,
             "SSE of the last layer": peer_last},
        ],
    ))  # fmt: skip
    report.checks += [
        Check("Dense layers: times as fast as coremltools (scaled from the last layer)",
              scaled / ours.median, 20, at_least=True),
        Check("Dense layers: SSE of the last over coremltools'", last / peer_last, 1),
    ]  # fmt: skip


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


def _coremltools_pq(weight: Tensor, k: int, dim: int) -> Decoded:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    small = peers.coremltools(nn.Sequential(layer), ["0"], (k - 1).bit_length(), dim)
    return Decoded(small.weights["0"])


def _faiss_pq(weight: Tensor, k: int, dim: int) -> Decoded:
    import faiss

    length = weight.shape[1]
    quantizer = faiss.ProductQuantizer(length, length // dim, (k - 1).bit_length())
    quantizer.cp.niter = 25
    # No warning about points per center: here they are as many as there are rows.
    quantizer.cp.min_points_per_centroid = 1
    return _faiss(quantizer, weight)


def faiss_shared(weight: Tensor, k: int, dim: int, points: int) -> Decoded:
    import faiss

    values = weight.reshape(-1, dim).numpy()
    kmeans = faiss.Kmeans(
        dim, k, niter=25, seed=0, max_points_per_centroid=points, min_points_per_centroid=1
    )
    run = race({"train": lambda: kmeans.train(values)}, 1)
    _, codes = kmeans.index.search(values, 1)
    decoded = torch.from_numpy(kmeans.centroids[codes[:, 0]]).reshape(weight.shape)
    return Decoded(decoded, run["train"].median)


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
