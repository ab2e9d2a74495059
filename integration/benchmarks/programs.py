"""Codebooks by PT2E in exported, reloaded, compiled and packaged programs of a trained CNN.

    python -m integration.benchmarks.programs [--quick] [--workload resnet20]

Agreement with the eager model with codebooks, on the untouched test images; sizes of files beside
those of the float program, whose package is given as torch writes it and as ``export_aoti`` would:
without tables for debuggers, deflated; latency of a single image on one thread, in turns, as time
of the processor. Five minutes on two cores, besides the training. ResNet-20 has been trained for
three epochs of twelve: what is compared are programs of one network.
"""

from __future__ import annotations

import argparse
import io
import tempfile
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import vq_plugin as vq
from integration.benchmarks import settings
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    race_of_processors,
    torch_threads,
)
from vq_plugin.export import aoti
from vq_plugin.select import Schemes
from vq_plugin.torchao import VQQuantizer, check_converted

_SCHEMES: dict[str, dict[str, Schemes]] = {
    "fashion_mnist_cnn": {
        "km(k=16)": vq.KM(k=16),
        "pq(k=16,dim=4), km": {r"re:classifier\.[03]": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)},
    },
    "resnet20": {"km(k=16)": vq.KM(k=16)},
}
# Of ResNet-20: a quarter of its training, which is kept beside the whole one.
_EPOCHS = 3
_QUICK: dict[str, Schemes] = {"pq(k=16,dim=4)": vq.PQ(k=16, dim=4)}


def _workload(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--workload", choices=_SCHEMES, default="fashion_mnist_cnn")


def exported(model: nn.Module, *inputs: Tensor) -> torch.export.ExportedProgram:
    """For any number of samples."""
    sizes = ({0: torch.export.Dim("batch")},) * len(inputs)
    return torch.export.export(model, inputs, dynamic_shapes=sizes)


def packaged(program: torch.export.ExportedProgram, path: Path) -> Callable[[Tensor], Tensor]:
    """The program by AOTInductor, loaded again."""
    torch._inductor.aoti_compile_and_package(program, package_path=str(path))
    loaded: Callable[[Tensor], Tensor] = torch._inductor.aoti_load_package(str(path))
    return loaded


def packed_alike(program: torch.export.ExportedProgram, path: Path) -> None:
    """A package with the settings of ``export_aoti``, deflated like its own."""
    package = io.BytesIO()
    with torch._inductor.config.patch(aoti.settings()):
        torch._inductor.aoti_compile_and_package(program, package_path=package)
    path.write_bytes(aoti.deflated(package))


def outputs(model: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in images.split(500)])


def latency(
    contenders: Mapping[str, Callable[..., Tensor]],
    *inputs: Tensor,
    turns: int,
    repeats: int = 20,
) -> dict[str, float]:
    """Median milliseconds of the processor; the shorter a call, the more ``repeats`` it needs."""
    calls = {name: partial(model, *inputs) for name, model in contenders.items()}
    with torch_threads(1):
        timed = race_of_processors(calls, turns, repeats)
    return {name: found.median * 1e3 for name, found in timed.items()}


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0], _workload)
    warnings.simplefilter("ignore")
    name = "digits" if arguments.quick else arguments.workload
    report = Report(f"programs_{name}", {"quick": arguments.quick, "workload": name})
    make = settings.WORKLOADS[name].model
    model = (partial(make, epochs=_EPOCHS) if name == "resnet20" else make)()
    images, labels = settings.test_images(name)
    # A file of a program has the whole tensor that an example is a part of.
    example = images[:2].clone()

    def accuracy(scores: Tensor) -> float:
        return (scores.argmax(1) == labels).double().mean().item()

    for label, schemes in (_QUICK if arguments.quick else _SCHEMES[name]).items():
        table = Table(
            f"{name}, {label}",
            {"program": "", "accuracy": ".2%", "other answers": "d", "MB": ".2f", "ms": ".3f"},
        )
        with tempfile.TemporaryDirectory() as folder:
            at = Path(folder)
            program = exported(model, example)
            torch.export.save(program, at / "float.pt2")
            runs: dict[str, Callable[[Tensor], Tensor]] = {"float, eager": model}
            runs["float, AOTInductor"] = packaged(program, at / "float_package.pt2")
            packed_alike(program, at / "float_alike.pt2")
            alike = str(at / "float_alike.pt2")
            runs["float, AOTInductor, packed alike"] = torch._inductor.aoti_load_package(alike)
            prepared = prepare_pt2e(program.module(), VQQuantizer(schemes))
            small = check_converted(convert_pt2e(prepared), schemes)
            runs["codebooks, eager"] = small
            program = exported(small, example)
            torch.export.save(program, at / "small.pt2")
            reloaded: Any = torch.export.load(at / "small.pt2").module()
            runs["codebooks, exported and loaded"] = reloaded
            runs["codebooks, compiled"] = torch.compile(small)
            vq.export_aoti(small, at / "small_package.pt2", example)
            package = str(at / "small_package.pt2")
            runs["codebooks, AOTInductor"] = torch._inductor.aoti_load_package(package)
            files = {
                "float, eager": "float.pt2", "float, AOTInductor": "float_package.pt2",
                "float, AOTInductor, packed alike": "float_alike.pt2",
                "codebooks, exported and loaded": "small.pt2",
                "codebooks, AOTInductor": "small_package.pt2",
            }  # fmt: skip
            found = {run: outputs(call, images) for run, call in runs.items()}
            times = latency(runs, images[:1], turns=5 if arguments.quick else 35)
            for run, scores in found.items():
                reference = "float, eager" if run.startswith("float") else "codebooks, eager"
                row = {"program": run, "accuracy": accuracy(scores), "ms": times[run]}
                other = int((scores.argmax(1) != found[reference].argmax(1)).sum())
                table.rows.append({**row, "other answers": other})
                if run in files:
                    table.rows[-1]["MB"] = (at / files[run]).stat().st_size / 1e6
                report.checks.append(Check(f"{label}, {run}: answers that differ", other, 0))
            sizes = {run: (at / file).stat().st_size for run, file in files.items()}
            if name == "fashion_mnist_cnn":
                ratio = sizes["float, AOTInductor"] / sizes["codebooks, AOTInductor"]
                report.checks.append(Check(f"{label}: smaller package", ratio, 8, at_least=True))
        report.add(table)
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
