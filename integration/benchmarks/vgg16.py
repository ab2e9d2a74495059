"""VGG-16 with nearly every layer on codes, convolutions too: a pass, against the float model's.

    python -m integration.benchmarks.vgg16 [--quick]

Untrained, with random codes; the first convolution, of three channels, stays float. Batch 1, on one
thread, by the time of the processor, all in turns, medians.
"""

from __future__ import annotations

import copy
from functools import partial

import torch
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    race_of_processors,
    random_codes,
    torch_threads,
)
from integration.benchmarks.memory import resident_nbytes
from integration.benchmarks.models import IMAGE, vgg16
from vq_plugin.ops import Precision

_PRECISIONS: tuple[Precision, ...] = ("exact", "fast")


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("vgg16", {"quick": arguments.quick})
    _race(report, vgg16(4 if arguments.quick else 64).eval(), 1 if arguments.quick else 7)
    report.finish(arguments.output)


def _race(report: Report, plain: nn.Module, turns: int) -> None:
    table = Table(
        "VGG-16, batch 1, 1 thread, processor time of a pass",
        {
            "weights": "", "milliseconds": ".1f", "least": ".1f", "most": ".1f", "ratio": ".2f",
            "weights MB": ".2f",
        },
    )  # fmt: skip
    models = {"float32": plain}
    for dim in (4, 8):
        small = copy.deepcopy(plain)
        for name, layer in plain.named_modules():
            scheme = vq.PQ(k=16, dim=dim)
            if isinstance(layer, nn.Conv2d):
                scheme = vq.PQ(k=16, dim=dim, layout="channels")
            if isinstance(layer, nn.Conv2d | nn.Linear) and getattr(layer, "in_channels", 4) > 3:
                parent, _, child = name.rpartition(".")
                setattr(small.get_submodule(parent), child, random_codes(layer, scheme))
        for precision in _PRECISIONS:
            model = copy.deepcopy(small)
            vq.set_precision(model, precision)
            models[f"codes, dim {dim}, {precision}"] = model
    image = torch.randn(IMAGE["VGG-16"])
    calls = {name: partial(model, image) for name, model in models.items()}
    with torch_threads(1), torch.no_grad():
        timed = race_of_processors(calls, turns)
    found = {name: some.median for name, some in timed.items()}
    for name, model in models.items():
        table.rows.append({
            "weights": name, "milliseconds": found[name] * 1e3,
            "least": min(timed[name].seconds) * 1e3, "most": max(timed[name].seconds) * 1e3,
            "ratio": found["float32"] / found[name],
            "weights MB": resident_nbytes(model) / 1e6,
        })  # fmt: skip
    report.add(table)
    # What the kernels were built for.
    for precision, target in (("exact", 2), ("fast", 3)):
        name = f"codes, dim 8, {precision}"
        report.checks.append(
            Check(f"VGG-16, {name}", found["float32"] / found[name], target, at_least=True)
        )


if __name__ == "__main__":
    main()
