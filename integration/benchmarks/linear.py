"""Codebook layers against the float layers that they replace, and against integer ones.

    python -m integration.benchmarks.linear [--quick]

Times are of whole ``layer(x)`` calls without gradients, all contenders in turn; ratios are those
of medians to float32 ``nn.Linear`` in the same run. "Warm": the same call was made just before.
"Cold": something larger than the caches was written in between.
"""

from __future__ import annotations

import copy
import warnings
from collections.abc import Callable, Mapping, Sequence
from functools import partial

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    medians,
    missing_peer,
    parse_arguments,
    random_codes,
    torch_threads,
)
from vq_plugin import ops

Layers = Mapping[str, Callable[[Tensor], Tensor]]

FLOAT = "nn.Linear float32"
BATCHES = (1, 8, 32, 128)
_OURS: Mapping[str, tuple[vq.Scheme, ops.Precision]] = {
    "PQ k=16 dim=4": (vq.PQ(k=16, dim=4), "exact"),
    "PQ k=16 dim=4, high": (vq.PQ(k=16, dim=4), "high"),
    "PQ k=16 dim=4, fast": (vq.PQ(k=16, dim=4), "fast"),
    "PQ k=16 dim=8": (vq.PQ(k=16, dim=8), "exact"),
    "PQ k=16 dim=8, high": (vq.PQ(k=16, dim=8), "high"),
    "PQ k=16 dim=8, fast": (vq.PQ(k=16, dim=8), "fast"),
    "PQ k=16 dim=4 axis=out": (vq.PQ(k=16, dim=4, axis="out"), "exact"),
    "PQ k=256 dim=8": (vq.PQ(k=256, dim=8), "exact"),
    "PQ k=256 dim=8 codebooks=tensor": (vq.PQ(k=256, dim=8, codebooks="tensor"), "exact"),
    "PQ k=256 dim=8 axis=out": (vq.PQ(k=256, dim=8, axis="out"), "exact"),
    "KM k=16": (vq.KM(k=16), "exact"),
    "KM k=16, fast": (vq.KM(k=16), "fast"),
    "KM k=256": (vq.KM(k=256), "exact"),
}
_BOUNDS = {
    "PQ k=16 dim=4": (20, 9, 4.5, 3),
    "PQ k=16 dim=4, fast": (45, 38, 16, 11),
    "KM k=16": (9, 3.8, 1.9, 1.3),
    "KM k=16, fast": (20, 17, 7.5, 5),
    "PQ k=256 dim=8": (1, 1, 1),
}
# What is no different from the first: its ratios show the noise.
_AGAIN = "nn.Linear float32, again"
_INT8 = "torch.ao int8 dynamic"
# Equal work is measured as 0.95 to 1.05.
_NOISE = 0.95


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("linear", {"quick": arguments.quick})
    square, wide, small = (96, 96), (96, 160), (64, 64)
    batches, seconds = (1, 8), 0.01
    if not arguments.quick:
        square, wide, small = (4096, 4096), (4096, 25088), (512, 512)
        batches, seconds = BATCHES, 1.5
    best = ops.isa()
    for shape in (small, square, wide):
        few = 0.5 if shape == small else 1.0
        layers = {**float_layers(*shape), **codebook_layers(*shape)}
        if shape == square:
            layers |= integer_layers(report, *shape)
        for threads in (2, 1):
            for cold in (False, True):
                table = race_layers(layers, shape, batches, threads, cold, seconds * few)
                report.add(table)
                _not_slower(report, table)
                if shape == square and threads == 2 and not cold:
                    _bounds(report, table, batches)
                if shape == wide and threads == 2:
                    where = "cold" if cold else "warm"
                    report.checks.append(
                        Check(f"{_size(shape)}, batch 1, {where}: PQ k=16 dim=4",
                              _ratio(table, "PQ k=16 dim=4", 1), 25, at_least=True)
                    )  # fmt: skip
        if shape == square:
            for isa in ops.isas()[1:]:
                ops.use_isa(isa)
                table = race_layers(
                    {name: layer for name, layer in layers.items()
                     if name == FLOAT or name in _OURS},
                    shape, batches, 2, False, seconds,
                )  # fmt: skip
                report.add(table)
                _not_slower(report, table)
                if isa == "avx2":
                    report.checks.append(
                        Check("AVX2, batch 1: PQ k=16 dim=4",
                              _ratio(table, "PQ k=16 dim=4", 1), 8, at_least=True)
                    )  # fmt: skip
            assert best is not None
            ops.use_isa(best)
    overhead(report, seconds)
    report.finish(arguments.output)


def float_layers(out: int, in_: int) -> Layers:
    layer = nn.Linear(in_, out).eval()
    half = copy.deepcopy(layer).bfloat16()
    return {
        FLOAT: layer,
        _AGAIN: copy.deepcopy(layer),
        "nn.Linear bfloat16": lambda x: half(x.bfloat16()),
    }


def codebook_layers(out: int, in_: int) -> dict[str, nn.Module]:
    """Random codes and codebooks: what they are takes no part in how long a layer runs."""
    layers = {}
    for name, (scheme, precision) in _OURS.items():
        layer = random_codes(nn.Linear(in_, out), scheme).eval()
        layer.precision = precision
        layers[name] = layer
    return layers


def integer_layers(report: Report, out: int, in_: int) -> Layers:
    """What quantizes linear layers on this processor: torch.ao and torchao."""
    plain = nn.Sequential(nn.Linear(in_, out)).eval()
    layers: dict[str, Callable[[Tensor], Tensor]] = {}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        layers[_INT8] = torch.ao.quantization.quantize_dynamic(copy.deepcopy(plain), {nn.Linear})
        if not missing_peer("torchao"):
            from torchao import quantization as torchao

            for name, settings in (
                ("torchao int8 weight-only", torchao.Int8WeightOnlyConfig),
                ("torchao int4 weight-only", torchao.Int4WeightOnlyConfig),
            ):
                model = copy.deepcopy(plain)
                try:
                    torchao.quantize_(model, settings())
                    model(torch.zeros(1, in_))
                except (ImportError, RuntimeError, NotImplementedError, ValueError) as error:
                    report.note(f"{name} does not run here: {error}".splitlines()[0])
                else:
                    layers[name] = model
    return layers


def race_layers(
    layers: Layers,
    shape: tuple[int, int],
    batches: Sequence[int],
    threads: int,
    cold: bool,
    seconds: float,
) -> Table:
    """Ratios of every layer to float32, one column for each batch."""
    where = "cold" if cold else "warm"
    title = f"{_size(shape)}, {threads} thread{'s' * (threads > 1)}, {where}, {ops.isa()}: {FLOAT}"
    table = Table(
        f"{title} / layer (milliseconds in its own row)",
        {"layer": "", **{f"batch {batch}": ".2f" for batch in batches}},
    )
    evict = torch.zeros(24 << 20)  # 100 MB: more than caches hold
    rows: dict[str, dict[str, object]] = {name: {"layer": name} for name in layers}
    with torch_threads(threads), torch.no_grad():
        for batch in batches:
            x = torch.randn(batch, shape[1])
            calls = {name: partial(layer, x) for name, layer in layers.items()}
            times = medians(calls, seconds, partial(evict.add_, 1) if cold else None)
            for name, median in times.items():
                own = name == FLOAT
                rows[name][f"batch {batch}"] = median * 1e3 if own else times[FLOAT] / median
    table.rows.extend(rows.values())
    return table


def overhead(report: Report, seconds: float) -> None:
    """What a call costs beside the arithmetic."""
    layer = nn.Linear(64, 64).eval()
    small = random_codes(layer, vq.PQ(k=16, dim=4)).eval()
    x = torch.randn(1, 64)
    calls = {
        FLOAT: partial(layer, x),
        "F.linear": partial(nn.functional.linear, x, layer.weight, layer.bias),
        "vq::codebook_linear": partial(
            *(torch.ops.vq.codebook_linear.inference, x, small._codes, small.codebooks, None),
            *(small.bias, *small._settings, 0),
        ),
        "CodebookLinear": partial(small, x),
    }
    with torch.no_grad():
        times = medians(calls, seconds)
    table = Table("64x64, PQ k=16 dim=4, batch 1", {"call": "", "microseconds": ".2f"})
    table.rows.extend(
        {"call": name, "microseconds": median * 1e6} for name, median in times.items()
    )
    report.add(table)
    report.checks.append(
        Check("64x64: vq::codebook_linear / F.linear",
              times["vq::codebook_linear"] / times["F.linear"], 1.5)
    )  # fmt: skip


def _bounds(report: Report, table: Table, batches: Sequence[int]) -> None:
    for name, limits in _BOUNDS.items():
        for batch, limit in zip(batches, limits, strict=False):
            report.checks.append(
                Check(f"batch {batch}: {name}", _ratio(table, name, batch), limit, at_least=True)
            )
    for batch in batches:
        ratio = _ratio(table, "PQ k=16 dim=4, fast", batch) / _ratio(table, _INT8, batch)
        report.checks.append(Check(f"batch {batch}: PQ fast over {_INT8}", ratio, 2, at_least=True))


def _not_slower(report: Report, table: Table) -> None:
    columns = [column for column in table.formats if column.startswith("batch")]
    worst = min(row[column] for row in table.rows if row["layer"] in _OURS for column in columns)
    where = table.title.partition(":")[0]
    report.checks.append(
        Check(f"{where}: the slowest layer, less noise", worst, _NOISE, at_least=True)
    )


def _ratio(table: Table, name: str, batch: int) -> float:
    row = next(row for row in table.rows if row["layer"] == name)
    return float(row[f"batch {batch}"])


def _size(shape: tuple[int, int]) -> str:
    return "x".join(map(str, shape))


if __name__ == "__main__":
    main()
