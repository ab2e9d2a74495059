"""What convolutions hold and take: their decoded weights kept, or decoded in every pass.

    python -m integration.benchmarks.memory [--quick]

An untrained ResNet-18 on one 224x224 image and an untrained ResNet-20 on one of 28x28, every layer
KM k=16, beside the float model: their values do not matter here. Resident weights are all tensors
that the model holds after a pass; latencies are medians of calls in turns.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import Check, Report, Table, medians, parse_arguments
from integration.workloads.fashion_mnist_resnet20 import BasicBlock, ResNet20
from vq_plugin.nn import coded_weights

_SCHEME = vq.KM(k=16)


def resnet18(width: int = 64) -> nn.Sequential:
    """ResNet-18 (He et al. 2015, arXiv 1512.03385, table 1); widths scale with ``width``."""
    blocks: list[nn.Module] = []
    inputs = width
    for stage in range(4):
        outputs = width << stage
        blocks += [BasicBlock(inputs, outputs, 2 if stage else 1), BasicBlock(outputs, outputs, 1)]
        inputs = outputs
    return nn.Sequential(
        nn.Conv2d(3, width, 7, 2, 3, bias=False), nn.BatchNorm2d(width), nn.ReLU(),
        nn.MaxPool2d(3, 2, 1),
        *blocks,
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 1000),
    )  # fmt: skip


def resident_nbytes(model: nn.Module) -> int:
    """Bytes of all tensors that a model holds: parameters, buffers, codes, and decoded weights."""
    holders = coded_weights(model).values()
    kept = [each._decoded.kept for each in holders]
    codes = [each._codes for each in holders]
    tensors = [*model.parameters(), *model.buffers(), *codes, *(w for w in kept if w is not None)]
    return sum({tensor.data_ptr(): tensor.nbytes for tensor in tensors}.values())


def main() -> None:
    """Measures, prints and writes the report."""
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("memory", vars(arguments) | {"output": None})
    models = {"ResNet-18": (resnet18(4 if arguments.quick else 64), torch.randn(1, 3, 224, 224))}
    if not arguments.quick:
        models["ResNet-20"] = (ResNet20(), torch.randn(1, 1, 28, 28))
    for name, (model, image) in models.items():
        _compare(report, name, model.eval(), image, 0.1 if arguments.quick else 8.0)
    report.finish(arguments.output)


def _compare(report: Report, name: str, model: nn.Module, image: Tensor, seconds: float) -> None:
    forms = {"float32": model}
    for memory in ("weight", "codes"):
        forms[memory] = vq.compress(model, _SCHEME)
        vq.set_memory(forms[memory], memory)  # type: ignore[arg-type]
    table = Table(
        f"{name}, batch 1, every layer {_SCHEME}",
        {"weights": "", "resident MB": ".2f", "of float": ".3f", "latency ms": ".2f"},
    )
    with torch.no_grad():
        latency = medians({form: partial(run, image) for form, run in forms.items()}, seconds)
    size = {form: resident_nbytes(held) for form, held in forms.items()}
    for form in forms:
        table.rows.append({
            "weights": form,
            "resident MB": size[form] / 1e6,
            "of float": size[form] / size["float32"],
            "latency ms": latency[form] * 1e3,
        })  # fmt: skip
    report.add(table)
    if name == "ResNet-18":
        share = size["codes"] / size["float32"]
        report.checks += [
            Check(f"{name}: resident with codes, of float", share, 1 / 6, at_least=False),
            Check(
                f"{name}: latency with codes, of that with weights",
                latency["codes"] / latency["weight"],
                1.3,
                at_least=False,
            ),
        ]


if __name__ == "__main__":
    main()
