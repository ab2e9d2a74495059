"""PQ of a model of many large layers, one codebook for each: seconds, memory and error."""

from __future__ import annotations

import vq_plugin as vq
from integration.benchmarks.compress_memory import peak_memory
from integration.benchmarks.fit_vector import faiss_shared
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    missing_peer,
    normal_weight,
    race,
    squared_error,
)

# Points that faiss trains on, for each center: its default, and all there are.
_POINTS = (256, 1 << 20)


def large_model(report: Report, layers: int, shape: tuple[int, int], k: int, dim: int) -> None:
    """The whole model by ``vq.compress``, and its first layer beside faiss' k-means.

    What faiss takes for that one is scaled to all.
    """
    scheme = vq.PQ(k=k, dim=dim, codebooks="tensor")
    peak_memory(report, *shape, (str(scheme),), layers=layers, most=1.5)
    if missing_peer("faiss"):
        report.note("faiss is not installed: the large model has no contender")
        return
    weight = normal_weight(*shape)
    faiss_shared(normal_weight(64, 64), 4, 4, 64)
    contenders = {"vq_plugin": lambda: vq.quantize_weight(weight, scheme).decode()}
    for points in _POINTS:
        contenders[f"faiss Kmeans, {points} points for each center"] = lambda points=points: (
            faiss_shared(weight, k, dim, points).weight
        )
    timed = race(contenders, 1)
    errors = {name: squared_error(weight, run.result) for name, run in timed.items()}
    report.add(Table(
        f"Large model: PQ k={k} dim={dim}, one codebook, on one of {layers} layers",
        {"contender": "", "seconds": ".2f", "seconds of all": ".0f", "SSE": ".6g"},
        [
            {"contender": name, "seconds": run.median, "seconds of all": layers * run.median,
             "SSE": errors[name]}
            for name, run in timed.items()
        ],
    ))  # fmt: skip
    for name in list(timed)[1:]:
        ratio = errors["vq_plugin"] / errors[name]
        report.checks.append(Check(f"Large model: SSE over {name}", ratio, 1.005))
