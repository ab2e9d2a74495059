"""Codebook convolutions against float ones.

    python -m integration.benchmarks.conv [--quick]

1x1 convolutions run through the linear kernels. Others keep their decoded weight, but for those
whose sub-vectors are channels: a second table, on one thread, beside torch.ao's int8.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial

import torch
from torch import Tensor, nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

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
# Channels, side, output channels, stride of 3x3 convolutions of one image.
BY_POSITION = (
    (64, 56, 64, 1),
    (128, 28, 128, 1),
    (256, 14, 256, 1),
    (512, 7, 512, 1),
    (64, 56, 128, 2),
    (128, 28, 256, 2),
    (256, 14, 512, 2),
)
_QUICK_BY_POSITION = ((16, 6, 32, 1),)
_PRECISIONS: tuple[ops.Precision, ...] = ("exact", "high", "fast")
_CHANNELS = {f"dim {dim}": vq.PQ(k=16, dim=dim, layout="channels") for dim in (4, 8)}


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
                "again": ".2f", **dict.fromkeys(_SCHEMES, ".2f"),
            },
        )  # fmt: skip
        for shape in shapes:
            table.rows.append(_race(shape, seconds))
        report.add(table)
        report.add(_by_position(isa, arguments.quick, seconds))
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
    x = torch.randn(images, channels, side, side)
    with torch.no_grad():
        median = medians({name: partial(call, x) for name, call in layers.items()}, seconds)
    row: dict[str, object] = {
        "images": images, "input": f"{channels}x{side}x{side}", "outputs": outputs,
        "kernel": f"{kernel}x{kernel}", "float32 ms": median["float32 ms"] * 1e3,
    }  # fmt: skip
    return row | {name: median["float32 ms"] / median[name] for name in layers if name not in row}


def _by_position(isa: str, quick: bool, seconds: float) -> Table:
    """3x3 convolutions of one image whose sub-vectors are channels, on one thread."""
    columns = [f"{dim} {precision}" for dim in _CHANNELS for precision in _PRECISIONS]
    table = Table(
        f"nn.Conv2d float32 / 3x3 on codes, 1 thread, {isa}",
        {
            "input": "", "outputs": "d", "stride": "d", "float32 ms": ".2f", "again": ".2f",
            **dict.fromkeys(columns, ".2f"), "torch.ao int8": ".2f",
        },
    )  # fmt: skip
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        for shape in _QUICK_BY_POSITION if quick else BY_POSITION:
            table.rows.append(_race_by_position(shape, seconds))
    finally:
        torch.set_num_threads(threads)
    return table


def _race_by_position(shape: tuple[int, int, int, int], seconds: float) -> dict[str, object]:
    channels, side, outputs, stride = shape
    plain = nn.Conv2d(channels, outputs, 3, stride, padding=1).eval()
    x = torch.randn(1, channels, side, side).relu()
    layers: dict[str, Callable[[Tensor], Tensor]] = {
        "float32 ms": plain,
        "again": copy.deepcopy(plain),
        "torch.ao int8": int8(plain, x),
    }
    for dim, scheme in _CHANNELS.items():
        for precision in _PRECISIONS:
            layer = random_codes(plain, scheme).eval()
            layer.precision = precision
            layers[f"{dim} {precision}"] = layer
    with torch.no_grad():
        median = medians({name: partial(call, x) for name, call in layers.items()}, seconds)
    row: dict[str, object] = {
        "input": f"{channels}x{side}x{side}", "outputs": outputs, "stride": stride,
        "float32 ms": median["float32 ms"] * 1e3,
    }  # fmt: skip
    return row | {name: median["float32 ms"] / median[name] for name in layers if name not in row}


def int8(plain: nn.Module, x: Tensor) -> nn.Module:
    """The same layer by torch.ao, with what turns its input into int8 and its output back."""
    model = nn.Sequential(copy.deepcopy(plain))
    prepared = prepare_fx(model, get_default_qconfig_mapping("x86"), (x,))
    prepared(x)
    converted: nn.Module = convert_fx(prepared)
    return converted


if __name__ == "__main__":
    main()
