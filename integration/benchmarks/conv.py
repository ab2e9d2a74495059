"""Codebook convolutions against float ones.

    python -m integration.benchmarks.conv [--quick]

1x1 convolutions run through the linear kernels, others keep their decoded weight. For these the
table also gives what unfolding the input and the linear kernel would take.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    medians,
    parse_arguments,
    random_codes,
)
from vq_plugin import ops

# Images, channels, side, output channels, kernel: layers of ResNet-50 and VGG-16.
_SHAPES = (
    (1, 64, 56, 256, 1),
    (1, 256, 56, 64, 1),
    (1, 256, 14, 1024, 1),
    (1, 512, 7, 2048, 1),
    (8, 64, 56, 256, 1),
    (8, 512, 7, 2048, 1),
    (1, 64, 56, 64, 3),
    (1, 128, 28, 128, 3),
    (1, 512, 7, 512, 3),
    (8, 128, 28, 128, 3),
)
_QUICK = ((1, 16, 6, 32, 1), (1, 8, 6, 8, 3))
_SCHEMES: Mapping[str, tuple[vq.Scheme, ops.Precision]] = {
    "PQ k=16 dim=4": (vq.PQ(k=16, dim=4), "exact"),
    "PQ fast": (vq.PQ(k=16, dim=4), "fast"),
    "KM k=16": (vq.KM(k=16), "exact"),
    "KM fast": (vq.KM(k=16), "fast"),
    "PQ k=256 dim=8 shared": (vq.PQ(k=256, dim=8, codebooks="tensor"), "exact"),
    "KM k=256": (vq.KM(k=256), "exact"),
}
_NOISE = 0.95


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("conv", {"quick": arguments.quick})
    shapes, seconds = (_QUICK, 0.01) if arguments.quick else (_SHAPES, 0.8)
    best = ops.isa()
    for isa in ops.isas():
        ops.use_isa(isa)
        table = Table(
            f"nn.Conv2d float32 / layer, {torch.get_num_threads()} threads, {isa}",
            {
                "images": "d", "input": "", "outputs": "d", "kernel": "", "float32 ms": ".2f",
                "again": ".2f", **dict.fromkeys(_SCHEMES, ".2f"), "unfolded": ".2f",
            },
        )  # fmt: skip
        for shape in shapes:
            table.rows.append(_race(shape, seconds))
        report.add(table)
        worst = min(row[name] for row in table.rows for name in _SCHEMES)
        report.checks.append(
            Check(f"{isa}: the slowest layer, less noise", worst, _NOISE, at_least=True)
        )
    if best is not None:
        ops.use_isa(best)
    report.finish(arguments.output)


def _race(shape: tuple[int, int, int, int, int], seconds: float) -> dict[str, object]:
    images, channels, side, outputs, kernel = shape
    plain = nn.Conv2d(channels, outputs, kernel, padding=kernel // 2).eval()
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        "float32 ms": plain,
        "again": copy.deepcopy(plain),  # shows the noise
    }
    for name, (scheme, precision) in _SCHEMES.items():
        layer = random_codes(plain, scheme).eval()
        layer.precision = precision
        layers[name] = layer
    if kernel > 1:
        flat = random_codes(
            nn.Linear(channels * kernel * kernel, outputs), vq.PQ(k=16, dim=4)
        ).eval()
        layers["unfolded"] = lambda x: flat(
            functional.unfold(x, kernel, padding=kernel // 2).transpose(1, 2).contiguous()
        )
    x = torch.randn(images, channels, side, side)
    with torch.no_grad():
        median = medians({name: partial(call, x) for name, call in layers.items()}, seconds)
    row: dict[str, object] = {
        "images": images, "input": f"{channels}x{side}x{side}", "outputs": outputs,
        "kernel": f"{kernel}x{kernel}", "float32 ms": median["float32 ms"] * 1e3,
    }  # fmt: skip
    return row | {name: median["float32 ms"] / median[name] for name in layers if name not in row}


if __name__ == "__main__":
    main()
