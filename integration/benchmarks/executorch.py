"""Trained networks as programs of ExecuTorch: size, answers and speed, float and of codes.

    python -m integration.benchmarks.executorch [--quick]

Needs ExecuTorch, which is in no extra. Programs run in its Python runtime on one image at a time;
time is the processor's, one thread, in turns.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Report,
    Table,
    parse_arguments,
    race_of_processors,
    torch_threads,
)
from vq_plugin.export.native_layers import Operator
from vq_plugin.select import Schemes
from vq_plugin.workloads import digits

_SCHEMES: Mapping[str, Schemes] = {
    "pq(k=16,dim=4), convolutions km(k=16)": {nn.Linear: vq.PQ(k=16, dim=4), "*": vq.KM(k=16)},
    "km(k=16)": vq.KM(k=16),
}


def _float_program(model: nn.Module, path: Path, image: Tensor) -> None:
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    program = torch.export.export(model, (image,))
    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    path.write_bytes(lowered.to_executorch().buffer)


def _loaded(path: Path) -> Callable[[Tensor], Tensor]:
    from executorch.runtime import Runtime

    torch.ops.load_library(vq.executorch_library())
    # A method does not keep its program alive.
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")
    return lambda image, program=program: method.execute([image])[0].clone()


def _milliseconds(
    runs: Mapping[str, Callable[[Tensor], Tensor]], image: Tensor
) -> dict[str, float]:
    timed = race_of_processors({name: partial(run, image) for name, run in runs.items()}, 15)
    return {name: found.median * 1e3 for name, found in timed.items()}


def _compare(report: Report, name: str, model: nn.Module, images: Tensor, labels: Tensor) -> None:
    table = Table(
        f"{name}, one image",
        {"program": "", "MB": ".3f", "accuracy": ".2%", "error": ".1e", "other answers": "d",
         "ms": ".2f"},
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        models, runs, sizes = {}, {}, {}

        def run(
            label: str, model: nn.Module, write: Callable[[nn.Module, Path, Tensor], None]
        ) -> None:
            path = Path(folder) / "model.pte"
            write(model, path, images[:1])
            models[label], runs[label] = model, _loaded(path)
            sizes[label] = path.stat().st_size / 1e6

        run("float", model, _float_program)
        for label, schemes in _SCHEMES.items():
            small = vq.compress(model, schemes).eval()
            for operator in get_args(Operator):
                write = partial(vq.export_executorch, operator=operator)
                run(f"{label}, {operator}", small, write)
        times = _milliseconds(runs, images[:1])
        for label, program in runs.items():
            found = torch.cat([program(image.unsqueeze(0)) for image in images])
            expected = models[label](images)
            answers = found.argmax(1)
            table.rows.append({
                "program": label,
                "MB": sizes[label],
                "accuracy": (answers == labels).double().mean().item(),
                "error": float((found - expected).abs().max() / expected.abs().max()),
                "other answers": int((answers != expected.argmax(1)).sum()),
                "ms": times[label],
            })  # fmt: skip
    report.add(table)


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("ignore")
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("executorch", {"quick": arguments.quick})
    with torch_threads(1):
        images, labels = digits.load().test
        _compare(report, "CNN on digits", digits.model().eval(), images, labels)
        if not arguments.quick:
            from integration.workloads import fashion_mnist, fashion_mnist_cnn

            test: Any = fashion_mnist.load().test
            images, labels = (each[:1000] for each in test)
            _compare(report, "Fashion-MNIST CNN", fashion_mnist_cnn.model().eval(), images, labels)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
