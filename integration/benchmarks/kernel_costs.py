"""Start values of the constants of isa_*.cpp: how long a kernel takes, as a sum of few terms.

    python -m integration.benchmarks.kernel_costs [--isa avx512]

Kernels run on one thread, on layers of several sizes with random codes, by the processor time of
the thread and less that of a call. Non-negative least squares of the relative error finds the
picoseconds of each code, weight, value of a center and table for each sample, and of each code and
value whatever the batch. The last column says how far the sum is from the measured time: at worst
below and above. Those in vq_plugin/ops/csrc/isa_*.cpp started from such a fit; some were then
adjusted by hand against ``integration.benchmarks.linear``.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from functools import partial

import numpy as np
import torch
from scipy.optimize import nnls
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Report,
    Table,
    parse_arguments,
    random_codes,
    torch_threads,
)
from vq_plugin import ops

_SHAPES = ((200, 776), (512, 512), (2048, 1024), (1024, 4096))
_BATCHES = (1, 2, 3, 8, 16, 32, 128)
_FEW, _TOGETHER = 4, 16
_TERMS = ("code", "weight", "value", "code once", "value once", "table")
_INPUT, _OUTPUT = 200.0, 300.0  # cost.h
_KERNELS: dict[str, tuple[vq.Scheme, ...]] = {
    "lookup_nibbles": tuple(vq.PQ(k=16, dim=dim) for dim in (2, 4, 8)),
    "scalar_nibbles": (vq.KM(k=16),),
    "outward_nibbles": tuple(vq.PQ(k=16, dim=dim, axis="out") for dim in (2, 4, 8)),
    "lookup_bytes": (vq.PQ(k=64, dim=4), vq.PQ(k=256, dim=4), vq.PQ(k=256, dim=8)),
    "scalar_bytes": (vq.KM(k=256),),
    "outward_bytes": tuple(vq.PQ(k=k, dim=d, axis="out") for k, d in ((64, 4), (256, 4), (256, 8))),
}

_PRECISIONS: dict[str, tuple[ops.Precision, ...]] = {
    "lookup_nibbles": ("exact", "high", "fast"),
    "scalar_nibbles": ("exact", "fast"),
}


def main() -> None:
    arguments = parse_arguments(
        __doc__.splitlines()[0], lambda parser: parser.add_argument("--isa", default=ops.isa())
    )
    report = Report("kernel_costs", {"quick": arguments.quick, "isa": arguments.isa})
    before = ops.isa()
    ops.use_isa(arguments.isa)
    table = Table(
        f"{arguments.isa}: picoseconds on one thread",
        {"kernel": "", **dict.fromkeys(_TERMS, ".0f"), "least": ".2f", "most": ".2f"},
    )
    with torch_threads(1), torch.no_grad():
        for kernel, schemes in _KERNELS.items():
            for precision in _PRECISIONS.get(kernel, ("exact",)):
                rows = list(_measure(schemes, precision, arguments.quick))
                by_sixteen = kernel in ("lookup_bytes", "outward_bytes")
                for sixteen in (False, True) if by_sixteen else (False,):
                    some = [
                        (_terms(numbers, sixteen), picoseconds)
                        for batch, numbers, picoseconds in rows
                        if not by_sixteen or (batch >= _FEW) == sixteen
                    ]
                    named = kernel if precision == "exact" else f"{kernel}_{precision}"
                    name = named + ", sixteen" * sixteen
                    table.rows.append({"kernel": name, **_solve(some)})
    if before is not None:
        ops.use_isa(before)
    report.add(table)
    report.finish(arguments.output)


def _measure(
    schemes: tuple[vq.Scheme, ...], precision: ops.Precision, quick: bool
) -> Iterator[tuple[int, tuple[float, ...], float]]:
    """Batch, (batch, codes, weights, values, tables), picoseconds less inputs' and outputs'."""
    empty = random_codes(nn.Linear(8, 8, bias=False), vq.KM(k=16))
    of_a_call = _seconds(partial(empty._multiply, torch.randn(1, 8)), quick)
    for scheme in schemes:
        for out, in_ in _SHAPES[:1] if quick else _SHAPES:
            layer = random_codes(nn.Linear(in_, out, bias=False), scheme)
            layer.precision = precision
            # As cost.h counts them.
            stages, _, _, k, dim = layer.codebooks.shape
            tables = float(stages * layer.geometry.subspaces)
            numbers = (tables * layer.geometry.rows, float(out * in_), tables * k * dim, tables)
            for batch in _BATCHES[::3] if quick else _BATCHES:
                call = partial(layer._multiply, torch.randn(batch, in_))
                rest = (_seconds(call, quick) - of_a_call) * 1e12 - batch * (
                    in_ * _INPUT + out * _OUTPUT
                )
                yield batch, (batch, *numbers), max(rest, 1.0)


def _seconds(call: Callable[[], object], quick: bool) -> float:
    call()
    start = time.perf_counter()
    call()
    once = max(time.perf_counter() - start, 1e-6)
    repeats, times = max(1, round(1e-4 / once)), []
    for _ in range(3 if quick else min(max(round(0.05 / (once * repeats)), 5), 101)):
        start = time.thread_time()
        for _ in range(repeats):
            call()
        times.append((time.thread_time() - start) / repeats)
    return statistics.median(times)


def _terms(numbers: tuple[float, ...], sixteen: bool) -> list[float]:
    batch, codes, weights, values, tables = numbers
    samples = -(-batch // _TOGETHER) * _TOGETHER if sixteen else batch
    return [
        *(samples * codes, samples * weights, samples * values, codes, values),
        samples * tables,
    ]


def _solve(rows: list[tuple[list[float], float]]) -> dict[str, float]:
    measured = np.array([picoseconds for _, picoseconds in rows])
    relative = np.array([terms for terms, _ in rows]) / measured[:, None]
    found, _ = nnls(relative, np.ones(len(rows)))
    estimates = relative @ found
    constants = dict(zip(_TERMS, map(float, found), strict=True))
    return {**constants, "least": float(estimates.min()), "most": float(estimates.max())}


if __name__ == "__main__":
    main()
