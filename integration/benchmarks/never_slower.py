"""Whether any codebook layer is slower than the float layer that it replaces: a sweep.

    python -m integration.benchmarks.never_slower [--isa avx2] [--threads 2] [--quick]

Kinds of schemes, shapes from 64x64 to 4096x25088, some ragged, batches of 1 to 512, precisions.
Each case calls the layer and the float layer in turns; its ratio is the median of those of
neighbours. On one thread the clock is the processor time of the thread, so that others on the
machine matter less; on two it is that of the wall. Layers decide for themselves, by the costs that
they would use anywhere (``vq-plugin doctor`` shows which), whether their kernel runs.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    random_codes,
    torch_threads,
)
from vq_plugin import ops
from vq_plugin.nn import CodebookLayer

_LIMIT = 0.97
_WORST = 10
_PRECISIONS: tuple[ops.Precision, ...] = ("exact", "high", "fast")
_SCHEMES: dict[str, tuple[ops.Precision, ...]] = {
    "pq(k=16,dim=2)": ("exact",),
    "pq(k=16,dim=4)": _PRECISIONS,
    "pq(k=16,dim=8)": _PRECISIONS,
    "rq(k=16,stages=2,dim=4)": ("exact", "fast"),
    "pq(k=16,dim=4,axis=out)": ("exact",),
    "pq(k=256,dim=8)": ("exact",),
    "pq(k=256,dim=4,codebooks=tensor)": ("exact",),
    "pq(k=256,dim=8,axis=out)": ("exact",),
    "km(k=16)": ("exact", "fast"),
    "km(k=256)": ("exact",),
}
# Outputs, inputs, batches.
_LINEAR: tuple[tuple[int, int, tuple[int, ...]], ...] = (
    (64, 64, (1, 8, 512)),
    (10, 1000, (1, 64)),
    (203, 777, (1, 5, 128)),
    (512, 512, (1, 8, 32, 512)),
    (2048, 300, (2, 64)),
    (1000, 2048, (1, 16, 128)),
    (4096, 4096, (1, 32)),
    (4096, 25088, (1, 16)),
)
# Channels, outputs, side, kernel, stride, groups, images.
_CONVOLUTIONS = (
    (16, 16, 32, 3, 1, 1, 1),
    (64, 64, 56, 3, 1, 1, 1),
    (96, 130, 17, 3, 2, 1, 2),
    (128, 128, 14, 3, 1, 4, 1),
    (256, 256, 14, 3, 1, 1, 1),
    (512, 512, 7, 3, 1, 1, 4),
    (64, 256, 28, 1, 1, 1, 1),
    (256, 256, 14, 1, 1, 1, 1),
    (1024, 512, 7, 1, 1, 1, 8),
)
_CONVOLUTION_SCHEMES: dict[str, tuple[ops.Precision, ...]] = {
    "pq(k=16,dim=4,layout=channels)": ("exact", "fast"),
    "pq(k=16,dim=8,layout=channels)": ("exact",),
    "pq(k=256,dim=8,layout=channels)": ("exact",),
    "km(k=16)": ("exact", "fast"),
}


@dataclass
class _Case:
    kind: str
    shape: str
    plain: nn.Module
    small: CodebookLayer
    inputs: dict[int, Tensor]
    precisions: tuple[ops.Precision, ...]


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _options)
    settings = {name: getattr(arguments, name) for name in ("quick", "isa", "threads")}
    report = Report("never_slower", settings)
    before = ops.isa()
    if arguments.isa is not None:
        ops.use_isa(arguments.isa)
    clock = time.thread_time if arguments.threads == 1 else time.perf_counter
    rows = []
    with torch_threads(arguments.threads), torch.no_grad():
        for case in _cases(arguments.quick):
            for precision in case.precisions:
                case.small.precision = precision
                for batch, x in case.inputs.items():
                    seconds, ratio = _race(case.plain, case.small, x, clock)
                    rows.append({
                        "layer": case.kind, "precision": precision, "shape": case.shape,
                        "batch": batch, "path": "float" if _keeps(case.small) else "codes",
                        "float32 us": seconds * 1e6, "ratio": ratio,
                    })  # fmt: skip
                    case.small._forget()
    where = f"{ops.isa()}, {arguments.threads} thread{'s' * (arguments.threads > 1)}"
    if before is not None:
        ops.use_isa(before)
    rows.sort(key=lambda row: float(row["ratio"]))
    formats = {"layer": "", "precision": "", "shape": "", "batch": "d", "path": "",
               "float32 us": ".0f", "ratio": ".2f"}  # fmt: skip
    worst = Table(
        f"{where}: the worst of {len(rows)} cases, nn.Linear or nn.Conv2d / layer", formats
    )
    worst.rows.extend(rows[:_WORST])
    report.add(worst)
    report.add(_by_kind(rows, where))
    lost = sum(row["ratio"] < _LIMIT for row in rows)
    report.checks.append(Check(f"{where}: cases below {_LIMIT}, of {len(rows)}", lost, 0))
    everything = Table(f"{where}: all cases", formats)
    everything.rows.extend(rows)
    report.tables.append(everything)
    report.finish(arguments.output)


def _options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isa", help="instruction set (the one in use)")
    parser.add_argument("--threads", type=int, default=1)


def _by_kind(rows: list[dict[str, object]], where: str) -> Table:
    table = Table(
        f"{where}: by kind",
        {"layer": "", "precision": "", "cases": "d", "by codes": "d", "worst": ".2f",
         "median": ".2f", "best": ".2f"},
    )  # fmt: skip
    kinds: dict[tuple[str, str], list[dict[str, object]]] = {}
    for row in rows:
        kinds.setdefault((str(row["layer"]), str(row["precision"])), []).append(row)
    for (kind, precision), some in kinds.items():
        ratios = [float(str(row["ratio"])) for row in some]
        table.rows.append({
            "layer": kind, "precision": precision, "cases": len(some),
            "by codes": sum(row["path"] == "codes" for row in some),
            "worst": ratios[0], "median": statistics.median(ratios), "best": ratios[-1],
        })  # fmt: skip
    return table


def _cases(quick: bool) -> Iterator[_Case]:
    for out, in_, batches in ((48, 64, (2,)),) if quick else _LINEAR:
        plain = nn.Linear(in_, out).eval()
        inputs = {batch: torch.randn(batch, in_) for batch in batches}
        for kind, precisions in _SCHEMES.items():
            small = random_codes(plain, vq.parse_scheme(kind)).eval()
            yield _Case(kind, f"{out}x{in_}", plain, small, inputs, precisions)
    for shape in _CONVOLUTIONS[:1] if quick else _CONVOLUTIONS:
        in_, out, side, kernel, stride, groups, images = shape
        conv = nn.Conv2d(in_, out, kernel, stride, kernel // 2, groups=groups).eval()
        inputs = {images: torch.randn(images, in_, side, side)}
        sizes = f"{in_}-{out} {kernel}x{kernel} {side}x{side}"
        text = sizes + f" /{stride}" * (stride > 1) + f" {groups} groups" * (groups > 1)
        for kind, precisions in _CONVOLUTION_SCHEMES.items():
            small = random_codes(conv, vq.parse_scheme(kind)).eval()
            yield _Case(kind, text, conv, small, inputs, precisions)


def _keeps(small: CodebookLayer) -> bool:
    return small._decoded.kept is not None


def _race(
    plain: nn.Module, small: nn.Module, x: Tensor, clock: Callable[[], float]
) -> tuple[float, float]:
    """Median seconds of the float layer, and the median ratio of neighbouring turns."""
    for call in (plain, small):
        call(x)
    started = time.perf_counter()
    plain(x)
    once = max(time.perf_counter() - started, 1e-6)
    repeats = max(1, round(3e-4 / once))
    turns = min(max(round(0.15 / (once * repeats)), 7), 51)
    ratios, times = [], []
    for turn in range(turns):
        found = {}
        # Who comes first finds other caches.
        for name, call in (("plain", plain), ("small", small))[:: 1 if turn % 2 else -1]:
            start = clock()
            for _ in range(repeats):
                call(x)
            found[name] = (clock() - start) / repeats
        times.append(found["plain"])
        ratios.append(found["plain"] / found["small"])
    return statistics.median(times), statistics.median(ratios)


if __name__ == "__main__":
    main()
