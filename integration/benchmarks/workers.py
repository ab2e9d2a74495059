"""One search on one process, on two of this machine, and on a Dask cluster of two.

python -m integration.benchmarks.workers [--quick]

Every process computes on one thread, so that two have twice the machine. The results must not
differ: the files are compared byte by byte.
"""

from __future__ import annotations

import os

# Before torch is imported, here and in the workers, which inherit it.
os.environ["OMP_NUM_THREADS"] = "1"

import tempfile
import time
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, parse_arguments
from integration.workloads import fashion_mnist_cnn
from vq_plugin.tuning.cluster import dask_cluster
from vq_plugin.workloads import digits

_LADDER = (
    vq.PQ(k=8, dim=8, axis="out"),
    vq.PQ(k=16, dim=8, axis="out"),
    vq.PQ(k=32, dim=8, codebooks="tensor"),
    vq.PQ(k=32, dim=4, codebooks="tensor"),
    vq.KM(k=4),
    vq.KM(k=8),
    vq.KM(k=16),
    vq.KM(k=32),
)


def main() -> None:
    arguments = parse_arguments(__doc__ or "")
    workload = digits if arguments.quick else fashion_mnist_cnn
    report = Report("workers", {"quick": arguments.quick})
    table = Table(
        f"{workload.__name__.rpartition('.')[2]}: {len(_LADDER)} schemes, at most 12 evaluations",
        {"backend": "", "workers": "d", "seconds": ".1f", "file bytes": "d", "same file": ""},
    )
    files = []
    contenders: dict[str, tuple[int, AbstractContextManager[None]]] = {
        "(this process)": (1, nullcontext()),
        "loky": (2, nullcontext()),
        "dask": (2, dask_cluster(2)),
    }
    workload.evaluate_samples(workload.model())
    for backend, (workers, cluster) in contenders.items():
        with cluster, tempfile.TemporaryDirectory() as folder:
            start = time.perf_counter()
            vq.tune(
                workload.model(),
                workload.evaluate_samples,
                vq.LossBudget(relative=0.02),
                workload.calibration(),
                candidates=_LADDER,
                max_trials=12,
                workers=workers,
                backend="loky" if workers == 1 else backend,
                folder=folder,
            )
            seconds = time.perf_counter() - start
            files.append((Path(folder) / "model.vq").read_bytes())
        same = files[-1] == files[0]
        table.rows.append({
            "backend": backend, "workers": workers, "seconds": seconds,
            "file bytes": len(files[-1]), "same file": "yes" if same else "NO",
        })  # fmt: skip
    report.add(table)
    report.checks.append(Check("different files", len(set(files)), 1))
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
