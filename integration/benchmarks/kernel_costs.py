"""Start values of the constants of isa_*.cpp: how long a kernel takes, as a sum of few terms.

    python -m integration.benchmarks.kernel_costs [--isa avx512]

Kernels run on one thread, on layers of several sizes with random codes, by the processor time of
the thread and less that of a call. Non-negative least squares of the relative error finds the
picoseconds of each code, weight, value of a center and table for each sample, of each code whatever
the batch, and of each value of a book that is read. A second table is of 3x3 convolutions of
images, by the terms of convolution_cost.h, and of torch's. The last columns say how far the sum is
from the measured time: at worst below and above. Those in vq_plugin/ops/csrc/isa_*.cpp started from
such a fit; some were then adjusted by hand against ``integration.benchmarks.linear``.
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
# Channels, side of the image, outputs, stride.
_IMAGES = (
    (16, 32, 16, 1), (16, 32, 32, 2), (32, 16, 32, 1), (32, 56, 64, 1), (64, 8, 64, 1),
    (64, 14, 64, 1), (64, 28, 64, 1), (64, 56, 64, 1), (64, 56, 128, 2), (128, 14, 128, 1),
    (128, 28, 128, 1), (128, 28, 256, 2), (256, 7, 256, 1), (256, 14, 256, 1), (256, 14, 512, 2),
    (512, 7, 512, 1),
)  # fmt: skip
_DIMS = (2, 4, 8)
_POSITIONS = 9
_CONVOLUTION_TERMS = ("input", "table", "value", "block", "column", "decode", "output")
_FLOAT_TERMS = ("product", "weight")
_CALL, _PASS = 12e6, 5e6  # convolution_cost.h
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
                    # Samples that share what is read of a book.
                    at_once = (_TOGETHER if sixteen else 1) if by_sixteen else max(_BATCHES)
                    some = [
                        (_terms(numbers, at_once), picoseconds)
                        for batch, numbers, picoseconds in rows
                        if not by_sixteen or (batch >= _FEW) == sixteen
                    ]
                    named = kernel if precision == "exact" else f"{kernel}_{precision}"
                    name = named + ", sixteen" * sixteen
                    table.rows.append({"kernel": name, **_solve(_TERMS, some)})
        report.add(table)
        for some_kernels in _convolutions(arguments.isa, arguments.quick):
            report.add(some_kernels)
    if before is not None:
        ops.use_isa(before)
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


def _convolutions(isa: str, quick: bool) -> Iterator[Table]:
    """Tables of the constants of convolutions on codes, and of torch's."""
    images = _IMAGES[:2] if quick else _IMAGES
    ends = {"least": ".2f", "most": ".2f"}
    table = Table(
        f"{isa}: picoseconds of convolutions on one thread",
        {"kernel": "", **dict.fromkeys(_CONVOLUTION_TERMS, ".0f"), **ends},
    )
    floats = []
    rows: dict[ops.Precision, list[tuple[list[float], float]]] = {p: [] for p in ops.PRECISIONS}
    for channels, side, outputs, stride in images:
        plain = nn.Conv2d(channels, outputs, 3, stride, padding=1, bias=False).eval()
        x = torch.randn(1, channels, side, side).relu()
        inputs, places = float(side * side), float((side // stride) ** 2)
        weights = float(plain.weight.numel())
        spent = _seconds(partial(plain, x), quick) * 1e12 - _PASS
        floats.append(([places * weights, weights], max(spent, 1.0)))
        for dim in _DIMS:
            layer = random_codes(plain, vq.PQ(k=16, dim=dim, layout="channels")).eval()
            assert isinstance(layer, vq.nn.CodebookConv2d)
            pieces, blocks = float(-(-channels // dim)), float(-(-outputs // 16))
            columns = float(-(-pieces // 8))
            lookups = places * _POSITIONS * blocks
            terms = [inputs, inputs * pieces, inputs * pieces * dim, lookups, lookups * columns,
                     columns * _POSITIONS * blocks, places * outputs]  # fmt: skip
            for precision, some in rows.items():
                layer.precision = precision
                spent = _seconds(partial(layer._look_up, x), quick) * 1e12
                some.append((terms, max(spent - _CALL, 1.0)))
    for precision, some in rows.items():
        name = "convolve" if precision == "exact" else f"convolve_{precision}"
        table.rows.append({"kernel": name, **_solve(_CONVOLUTION_TERMS, some)})
    yield table
    yield Table(
        "Picoseconds of torch's convolutions on one thread",
        {**dict.fromkeys(_FLOAT_TERMS, ".0f"), **ends},
        [_solve(_FLOAT_TERMS, floats)],
    )


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


def _terms(numbers: tuple[float, ...], at_once: int) -> list[float]:
    batch, codes, weights, values, tables = numbers
    passes = -(-batch // at_once)
    samples = passes * at_once if at_once == _TOGETHER else batch
    return [
        *(samples * codes, samples * weights, samples * values, codes, passes * values),
        samples * tables,
    ]


def _solve(terms: tuple[str, ...], rows: list[tuple[list[float], float]]) -> dict[str, float]:
    """The constants, and how far the sums of terms are from what was measured."""
    measured = np.array([picoseconds for _, picoseconds in rows])
    relative = np.array([counts for counts, _ in rows]) / measured[:, None]
    found, _ = nnls(relative, np.ones(len(rows)))
    estimates = relative @ found
    constants = dict(zip(terms, map(float, found), strict=True))
    return {**constants, "least": float(estimates.min()), "most": float(estimates.max())}


if __name__ == "__main__":
    main()
