"""The weights of a ResNet-18 written out from codes, against copying as many float32 weights.

    python -m integration.benchmarks.decode [--quick]

A layer that keeps only codes decodes its weight at every forward pass. Cells are how many times the
speed of ``weight.clone()`` of the same weights that takes, in turns, medians; above 1 decoding is
faster than copying.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    medians,
    normal_weight,
    parse_arguments,
    torch_threads,
)
from vq_plugin import ops

# (outputs, inputs, side of the kernel)
RESNET18 = [(64, 3, 7), *[(64, 64, 3)] * 4] + [
    shape
    for n in (64, 128, 256)
    for shape in [(2 * n, n, 3), *[(2 * n, 2 * n, 3)] * 3, (2 * n, n, 1)]
]
SCHEMES: dict[str, vq.Scheme] = {
    "KM, k 16": vq.KM(k=16),
    "PQ, k 16, dim 4": vq.PQ(k=16, dim=4),
    "PQ, k 256, dim 4, shared": vq.PQ(k=256, dim=4, codebooks="tensor"),
    "KM, k 256": vq.KM(k=256),
    "PQ, k 16, dim 4, out": vq.PQ(k=16, dim=4, axis="out"),
    "PQ, k 256, dim 4, shared, out": vq.PQ(k=256, dim=4, codebooks="tensor", axis="out"),
}
PROMISED = list(SCHEMES)[:3]


def decoding(shape: tuple[int, int, int], scheme: vq.Scheme) -> Callable[[], Tensor]:
    """Writes out one weight of random codes and centers."""
    outputs, inputs, side = shape
    geometry = scheme.geometry((outputs, inputs, side, side)).with_centers(scheme.k)
    along_out = geometry.axis == "out"
    codes = torch.randint(scheme.k, geometry.code_shape, dtype=torch.uint8)
    return partial(
        ops.dequantize_codebook,
        ops.pack_codes(codes, along_out=along_out) if ops.packs(scheme.k) else codes,
        torch.randn(geometry.codebook_shape),
        shape=geometry.shape,
        along_out=along_out,
        codebook_dtype=torch.float16,
    )


def all_of(calls: list[Callable[[], Tensor]]) -> list[Tensor]:
    """What a forward pass of the model allocates."""
    return [call() for call in calls]


def main() -> None:
    """Measures, prints and writes the report."""
    arguments = parse_arguments(__doc__.splitlines()[0])
    seconds = 0.01 if arguments.quick else 8.0
    shapes = RESNET18[:2] if arguments.quick else RESNET18
    report = Report("decode", vars(arguments) | {"output": None})
    copies = [normal_weight(o, i, side, side).clone for o, i, side in shapes]
    best = ops.isa()
    table = Table(
        f"Decoding {sum(o * i * side**2 for o, i, side in shapes) / 1e6:.1f} M weights / clone()",
        {"ISA": "", "threads": "d", "clone ms": ".2f", **dict.fromkeys(SCHEMES, ".2f")},
    )
    for isa in ops.isas():
        ops.use_isa(isa)
        contenders = {"clone": partial(all_of, copies)}
        for name, scheme in SCHEMES.items():
            contenders[name] = partial(all_of, [decoding(shape, scheme) for shape in shapes])
        for threads in (1, 2):
            with torch_threads(threads), torch.no_grad():
                median = medians(contenders, seconds)
            row = {"ISA": isa, "threads": threads, "clone ms": median["clone"] * 1e3}
            table.rows.append(row | {name: median["clone"] / median[name] for name in SCHEMES})
            report.checks += [
                Check(f"{isa}, {threads} threads: {name}", row[name], 0.5, at_least=True)
                for row in table.rows[-1:]
                for name in PROMISED
            ]
    if best is not None:
        ops.use_isa(best)
    report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
