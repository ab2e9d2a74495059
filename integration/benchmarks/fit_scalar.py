"""K-means on single weights: against scikit-learn, coremltools and the exact optimum."""

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
    missing_peer,
    normal_weight,
    race,
    squared_error,
)

# Minutes each; noise of a per cent or two does not change what they show.
_SLOW_SKLEARN = 256
_SPEEDUPS = {16: 10.0, 256: 200.0}


def against_sklearn(report: Report, shape: tuple[int, int], ks: Sequence[int], rounds: int) -> None:
    """Whole calls, from float weight to decoded weight; labels included for all."""
    weight = normal_weight(*shape)
    with_coremltools = not missing_peer("coremltools")
    _warm_up(with_coremltools)
    rows = "x".join(map(str, shape))
    table = Table(
        f"KM on {rows} normal weights",
        {
            "k": "d", "contender": "", "seconds": ".3f", "calls": "d",
            "time / ours": ".1f", "SSE": ".6g", "SSE / ours": ".6f",
        },
    )  # fmt: skip
    for k in ks:
        contenders: dict[str, Callable[[], Tensor]] = {
            "vq_plugin": partial(_ours, weight, k, "float16"),
            "vq_plugin, float32 codebook": partial(_ours, weight, k, "float32"),
            "sklearn KMeans(n_init=1)": partial(sklearn_decode, weight, k),
        }
        if with_coremltools:
            contenders["coremltools palettizer"] = partial(_coremltools, weight, k)
        slow = {"sklearn KMeans(n_init=1)"} if k >= _SLOW_SKLEARN else set()
        timed = race(contenders, rounds, once=slow)
        ours = timed["vq_plugin"]
        error = squared_error(weight, ours.result)
        for name, run in timed.items():
            table.rows.append({
                "k": k, "contender": name, "seconds": run.median, "calls": len(run.seconds),
                "time / ours": run.median / ours.median,
                "SSE": squared_error(weight, run.result),
                "SSE / ours": squared_error(weight, run.result) / error,
            })  # fmt: skip
        theirs = timed["sklearn KMeans(n_init=1)"]
        if k in _SPEEDUPS:
            report.checks.append(
                Check(f"KM k={k}: times as fast as sklearn", theirs.median / ours.median,
                      _SPEEDUPS[k], at_least=True)
            )  # fmt: skip
        report.checks.append(
            Check(f"KM k={k}: SSE over sklearn's", error / squared_error(weight, theirs.result), 1)
        )
    report.add(table)


def large_layer(report: Report, shape: tuple[int, int], k: int, rounds: int) -> None:
    """Whole calls on a layer where scikit-learn takes minutes: it is called once."""
    weight = normal_weight(*shape)
    _warm_up(with_coremltools=False)
    timed = race(
        {
            "vq_plugin": partial(_ours, weight, k, "float16"),
            "sklearn KMeans(n_init=1)": partial(sklearn_decode, weight, k),
        },
        rounds,
        once={"sklearn KMeans(n_init=1)"},
    )
    ours, theirs = timed.values()
    errors = {name: squared_error(weight, run.result) for name, run in timed.items()}
    rows = "x".join(map(str, shape))
    report.add(Table(
        f"Large KM k={k} on {rows} normal weights",
        {"contender": "", "seconds": ".3f", "calls": "d", "time / ours": ".1f", "SSE": ".6g"},
        [
            {"contender": name, "seconds": run.median, "calls": len(run.seconds),
             "time / ours": run.median / ours.median, "SSE": errors[name]}
            for name, run in timed.items()
        ],
    ))  # fmt: skip
    report.checks += [
        Check(f"Large KM k={k}: times as fast as sklearn", theirs.median / ours.median, 40,
              at_least=True),
        Check(f"Large KM k={k}: SSE over sklearn's",
              errors["vq_plugin"] / errors["sklearn KMeans(n_init=1)"], 1),
    ]  # fmt: skip


def against_optimum(report: Report, count: int, ks: Sequence[int]) -> None:
    """SSE over that of ``kmeans1d``, which finds the exact optimum."""
    if missing_peer("kmeans1d"):
        report.note("kmeans1d is not installed: the exact optimum is left out")
        return
    import kmeans1d

    weight = normal_weight(count // 100, 100)
    values = weight.flatten().double()
    table = Table(
        f"KM on {weight.numel()} normal weights against the exact optimum of kmeans1d",
        {
            "k": "d", "SSE / optimum": ".6f", "float32 codebook": ".6f",
            "seconds": ".4f", "kmeans1d seconds": ".3f",
        },
    )  # fmt: skip
    for k in ks:
        timed = race(
            {
                "vq_plugin": partial(_ours, weight, k, "float16"),
                "float32": partial(_ours, weight, k, "float32"),
            },
            rounds=3,
        )
        best = race({"kmeans1d": partial(kmeans1d.cluster, values.numpy(), k)}, 1)["kmeans1d"]
        centers = torch.tensor(best.result.centroids, dtype=torch.float64)
        codes = torch.as_tensor(best.result.clusters)
        optimum = squared_error(values, centers[codes])
        table.rows.append({
            "k": k,
            "SSE / optimum": squared_error(weight, timed["vq_plugin"].result) / optimum,
            "float32 codebook": squared_error(weight, timed["float32"].result) / optimum,
            "seconds": timed["vq_plugin"].median, "kmeans1d seconds": best.median,
        })  # fmt: skip
    worst = max(row["SSE / optimum"] for row in table.rows)
    report.checks.append(Check("KM: largest SSE over the optimum", worst, 1.001))
    report.add(table)


def sklearn_decode(weight: Tensor, k: int) -> Tensor:
    """The weight after scikit-learn's k-means on its single values."""
    values = weight.reshape(-1, 1).numpy()
    found = KMeans(k, n_init=1, random_state=0).fit(values)
    decoded: np.ndarray = found.cluster_centers_[found.labels_]
    return torch.from_numpy(decoded).reshape(weight.shape)


def _warm_up(with_coremltools: bool) -> None:
    tiny = normal_weight(64, 64)
    _ours(tiny, 4, "float16")
    sklearn_decode(tiny, 4)
    if with_coremltools:
        _coremltools(tiny, 4)


def _ours(weight: Tensor, k: int, dtype: str) -> Tensor:
    return vq.quantize_weight(weight, vq.KM(k=k, codebook_dtype=dtype)).decode()  # type: ignore[arg-type]


def _coremltools(weight: Tensor, k: int) -> Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.clone())
    model = nn.Sequential(layer)
    return peers.coremltools(model, ["0"], (k - 1).bit_length(), 1).weights["0"]
