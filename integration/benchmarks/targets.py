"""How fast layers are meant to be, and how fast they are: ratios to float32 layers of torch.

    python -m integration.benchmarks.targets [--isa avx2] [--quick]

nn.Linear of 4096x4096 and 3x3 convolutions of one image, on one thread, by the processor time of
the thread, all contenders in turns; each figure is the median of the ratios of neighbours. Targets
are those that the kernels were built for; what is below one of them by more than noise is a miss.

``--isa avx2`` confines our kernels alone. For torch to run as it does on a machine that has no
more, set ATEN_CPU_CAPABILITY=avx2, MKL_ENABLE_INSTRUCTIONS=AVX2 and ONEDNN_MAX_CPU_ISA=AVX2, too:
one of its libraries reads each.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.conv import BY_POSITION
from integration.benchmarks.conv import int8 as int8_convolution
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    random_codes,
    torch_threads,
)
from vq_plugin import ops

_BATCHES = (1, 8, 32, 128)
# By layer: the scheme, its precision, and targets by batch with AVX2 and with AVX-512.
_LINEAR: Mapping[str, tuple[str, ops.Precision, dict[str, tuple[float, ...]]]] = {
    "PQ fast": ("pq(k=16,dim=4)", "fast", {"avx2": (16, 18, 11, 8), "avx512": (60, 40, 18, 14)}),
    "PQ high": ("pq(k=16,dim=4)", "high", {"avx2": (12, 11, 6, 4.5), "avx512": (40, 20, 10, 8)}),
    "PQ exact": (
        "pq(k=16,dim=4)", "exact", {"avx2": (10, 7, 3.5, 2.5), "avx512": (38, 14, 7, 5.5)}
    ),
    "KM fast": ("km(k=16)", "fast", {"avx2": (4, 5.5, 2.7, 2), "avx512": (30, 17, 8, 6)}),
    "KM exact": ("km(k=16)", "exact", {"avx2": (2.9, 1.9, 1.4, 1), "avx512": (15, 5, 2.5, 1.9)}),
    "PQ dim 8 fast": ("pq(k=16,dim=8)", "fast", {}),
    "PQ dim 8 exact": ("pq(k=16,dim=8)", "exact", {}),
}  # fmt: skip
# By dim and precision, one for each of conv.BY_POSITION, the same on both.
_CONVOLUTION_TARGETS: Mapping[tuple[int, ops.Precision], tuple[float, ...]] = {
    (4, "exact"): (1.5, 1.9, 2.2, 3.3, 1.5, 1.5, 1.5),
    (4, "fast"): (3.5, 5, 6, 9, 1.5, 1.5, 1.5),
    (8, "exact"): (2.2, 3.2, 4, 6.5, 1.5, 1.5, 1.5),
    (8, "fast"): (4.2, 7, 10, 16, 1.5, 1.5, 1.5),
}
_Call = Callable[[Tensor], Tensor]


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _isa)
    isa = arguments.isa or ops.isa() or "no kernels"
    if arguments.isa is not None:
        ops.use_isa(isa)
    report = Report("targets", {"quick": arguments.quick, "isa": isa})
    turns = 2 if arguments.quick else 7
    with torch_threads(1), torch.no_grad():
        _linear(report, isa, arguments.quick, turns)
        _convolutions(report, isa, arguments.quick, turns)
    report.finish(arguments.output)


def _isa(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--isa", help="instruction set of our kernels (the one in use)")


def _linear(report: Report, isa: str, quick: bool, turns: int) -> None:
    size = 64 if quick else 4096
    plain = nn.Linear(size, size).eval()
    layers: dict[str, nn.Module] = {}
    for name, (scheme, precision, _) in _LINEAR.items():
        small = random_codes(plain, vq.parse_scheme(scheme)).eval()
        small.precision = precision
        layers[name] = small
    layers["torch.ao int8 dynamic"] = torch.ao.quantization.quantize_dynamic(
        nn.Sequential(plain), {nn.Linear}
    )
    found = {batch: _ratios(plain, layers, torch.randn(batch, size), turns) for batch in _BATCHES}
    table = Table(
        f"{isa}, 1 thread, {size}x{size}: nn.Linear float32 / layer, and what is meant",
        {"layer": "", **{f"batch {batch}": "" for batch in _BATCHES}},
    )
    for name in layers:
        targets = _LINEAR[name][2].get(isa) if name in _LINEAR else None
        cells = {}
        for at, batch in enumerate(_BATCHES):
            ratio = found[batch][name]
            cells[f"batch {batch}"] = f"{ratio:.1f}" + (f" / {targets[at]:g}" if targets else "")
            if targets:
                report.checks.append(
                    Check(f"{isa}: {name}, batch {batch}", ratio, targets[at], at_least=True)
                )
        table.rows.append({"layer": name, **cells})
    report.add(table)
    for batch in _BATCHES:
        ratio = found[batch]["PQ fast"] / found[batch]["torch.ao int8 dynamic"]
        report.checks.append(
            Check(f"{isa}: PQ fast over torch.ao int8, batch {batch}", ratio, 2, at_least=True)
        )


def _convolutions(report: Report, isa: str, quick: bool, turns: int) -> None:
    names = {of: f"dim {of[0]} {of[1]}" for of in _CONVOLUTION_TARGETS}
    table = Table(
        f"{isa}, 1 thread, 3x3, one image: nn.Conv2d float32 / layer, and what is meant",
        {"input": "", "outputs": "d", "stride": "d", **dict.fromkeys(names.values(), ""),
         "torch.ao int8": ".1f"},
    )  # fmt: skip
    for at, shape in enumerate(BY_POSITION[:1] if quick else BY_POSITION):
        channels, side, outputs, stride = (16, 6, 32, 1) if quick else shape
        plain = nn.Conv2d(channels, outputs, 3, stride, padding=1).eval()
        x = torch.randn(1, channels, side, side).relu()
        layers: dict[str, nn.Module] = {"torch.ao int8": int8_convolution(plain, x)}
        for (dim, precision), name in names.items():
            small = random_codes(plain, vq.PQ(k=16, dim=dim, layout="channels")).eval()
            small.precision = precision
            layers[name] = small
        found = _ratios(plain, layers, x, turns)
        row: dict[str, object] = {
            "input": f"{channels}x{side}x{side}", "outputs": outputs, "stride": stride,
            "torch.ao int8": found["torch.ao int8"],
        }  # fmt: skip
        for of, name in names.items():
            target = _CONVOLUTION_TARGETS[of][at]
            row[name] = f"{found[name]:.1f} / {target:g}"
            what = f"{isa}: {row['input']} to {outputs} / {stride}, {name}"
            report.checks.append(Check(what, found[name], target, at_least=True))
        table.rows.append(row)
    report.add(table)


def _ratios(
    plain: nn.Module, layers: Mapping[str, nn.Module], x: Tensor, turns: int
) -> dict[str, float]:
    """Median ratios of the float layer to each of the others, called right after it."""
    ratios: dict[str, list[float]] = {name: [] for name in layers}
    for layer in (plain, *layers.values()):
        layer(x)
    for _ in range(turns):
        for name, layer in layers.items():
            ratios[name].append(_seconds(plain, x) / _seconds(layer, x))
    return {name: statistics.median(some) for name, some in ratios.items()}


def _seconds(call: _Call, x: Tensor) -> float:
    """Processor time of a call whose weights the one before it has left in the caches."""
    call(x)
    start = time.thread_time()
    repeats = 0
    while (spent := time.thread_time() - start) < 2e-3:
        call(x)
        repeats += 1
    return spent / repeats


if __name__ == "__main__":
    main()
