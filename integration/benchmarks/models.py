"""Whole models: latency, resident memory and load time, float32 against codebooks.

    python -m integration.benchmarks.models [--quick]

The Fashion-MNIST CNN, trained, every layer compressed; and an untrained VGG-16 whose three dense
layers, 124 of its 138 million weights, are. Each model is loaded and run in a process of its own,
so that memory is its own.
"""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.compress_memory import resident
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    medians,
    parse_arguments,
    random_codes,
)
from integration.benchmarks.memory import resident_nbytes
from integration.workloads import fashion_mnist_cnn

_SCHEME = vq.PQ(k=16, dim=4)
IMAGE = {"VGG-16": (1, 3, 224, 224), "Fashion-MNIST CNN": (1, 1, 28, 28)}


def vgg16(width: int = 64) -> nn.Sequential:
    """VGG-16 (Simonyan and Zisserman 2014, configuration D); all widths scale with ``width``."""
    layers: list[nn.Module] = []
    channels = 3
    for repeat, factor in ((2, 1), (2, 2), (3, 4), (3, 8), (3, 8)):
        for _ in range(repeat):
            layers += [nn.Conv2d(channels, factor * width, 3, padding=1), nn.ReLU()]
            channels = factor * width
        layers.append(nn.MaxPool2d(2))
    hidden = 64 * width
    return nn.Sequential(
        nn.Sequential(*layers),
        nn.Flatten(),
        nn.Sequential(
            nn.Linear(49 * channels, hidden), nn.ReLU(), nn.Dropout(),
            nn.Linear(hidden, hidden), nn.ReLU(), nn.Dropout(), nn.Linear(hidden, 1000),
        ),
    )  # fmt: skip


def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("models", {"quick": arguments.quick})
    models: dict[str, Callable[[], nn.Module]] = {
        "VGG-16": partial(vgg16, 4 if arguments.quick else 64)
    }
    if not arguments.quick:
        models["Fashion-MNIST CNN"] = fashion_mnist_cnn.model
    for name, build in models.items():
        _compare(report, name, build(), arguments.quick)
    report.finish(arguments.output)


def _compare(report: Report, name: str, model: nn.Module, quick: bool) -> None:
    if name == "VGG-16":
        # Random codes: untrained weights have nothing to find.
        dense = model.get_submodule("2")
        small = copy.deepcopy(model)
        for child, layer in dense.named_children():
            if isinstance(layer, nn.Linear):
                setattr(small.get_submodule("2"), child, random_codes(layer, _SCHEME))
        what = "dense layers"
    else:
        small = vq.compress(model, _SCHEME)
        what = "every layer"
    table = Table(
        f"{name}, batch 1, {what} {_SCHEME}",
        {
            "weights": "", "file MB": ".2f", "load ms": ".1f", "latency ms": ".2f",
            "dense ms": ".3f", "dense MB": ".2f", "process MB": ".1f",
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        plain, compressed = Path(folder) / "float.safetensors", Path(folder) / "small.vq"
        save_file(model.state_dict(), plain)
        vq.save(small, compressed)
        found = {
            kind: _child(name, file, kind, quick)
            for kind, file in (("float32", plain), ("exact", compressed), ("fast", compressed))
        }
    for kind, row in found.items():
        table.rows.append({"weights": kind if kind == "float32" else f"codes, {kind}", **row})
    report.add(table)
    if name == "VGG-16":
        ours, theirs = found["exact"], found["float32"]
        for column in ("dense ms", "dense MB"):
            report.checks.append(
                Check(f"{name}: {column}, times as small", theirs[column] / ours[column], 15,
                      at_least=True)
            )  # fmt: skip


def _child(name: str, file: Path, kind: str, quick: bool) -> dict[str, float]:
    command = [sys.executable, "-m", __spec__.name, "--child", name, str(file), kind, str(quick)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    found: dict[str, float] = json.loads(done.stdout)
    return found


def _measure(name: str, file: Path, kind: str, quick: bool) -> dict[str, float]:
    """One model in this process: what it takes to load, to run and to hold."""
    skeleton = vgg16(4 if quick else 64) if name == "VGG-16" else fashion_mnist_cnn.FashionCNN()
    model: nn.Module = skeleton.eval()
    start = time.perf_counter()
    if kind == "float32":
        model.load_state_dict(load_file(file))
    else:
        model = vq.load(file, model)
        vq.set_precision(model, "fast" if kind == "fast" else "exact")
    load = time.perf_counter() - start
    del skeleton
    dense = model.get_submodule("2" if name == "VGG-16" else "classifier")
    inputs: list[Tensor] = []
    hook = dense.register_forward_pre_hook(lambda _, given: inputs.extend(given))
    image = torch.randn(IMAGE[name])
    with torch.no_grad():
        model(image)
        hook.remove()
        seconds = 0.1 if quick else 3
        latency = medians({"": partial(model, image)}, seconds)[""]
        dense_latency = medians({"": partial(dense, inputs[0])}, seconds)[""]
    return {
        "file MB": file.stat().st_size / 1e6,
        "load ms": load * 1e3,
        "latency ms": latency * 1e3,
        "dense ms": dense_latency * 1e3,
        "dense MB": resident_nbytes(dense) / 1e6,
        "process MB": resident("VmRSS") / 1e6,
    }


if __name__ == "__main__":
    if "--child" in sys.argv:
        _name, _file, _kind, _quick = sys.argv[2:]
        print(json.dumps(_measure(_name, Path(_file), _kind, _quick == "True")))
    else:
        main()
