"""A trained CNN as ONNX files that keep its codes, run by ONNX Runtime.

    python -m integration.benchmarks.onnx [--quick]

Sizes beside the packed codes, codebooks and all that stays float; outputs and answers beside
torch's, on all test images; the time of one image on one thread, in turns, as time of the
processor; and what a session that folds nothing costs. Three minutes on two cores.
"""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import torch
from torch import Tensor, nn

import vq_plugin as vq
from integration.benchmarks.harness import (
    Check,
    Report,
    Table,
    parse_arguments,
    race_of_processors,
)
from integration.workloads import fashion_mnist, fashion_mnist_cnn
from vq_plugin.select import Schemes

_SETTINGS: dict[str, Schemes] = {
    "km(k=16)": vq.KM(k=16),
    "pq(k=16,dim=4), km": {r"re:classifier\.[03]": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)},
    # What `vq-plugin tune recipes/fashion_mnist_cnn.yaml` has chosen.
    "tuned at 1 %": {
        "features.0": vq.KM(k=128),
        "features.3": vq.parse_scheme("uniform(step=0.317,k=256,scale=row)"),
        "classifier.0": vq.PQ(k=16, dim=4, codebooks="tensor"),
        "classifier.3": vq.PQ(k=64, dim=8, codebooks="tensor"),
        "classifier.6": vq.parse_scheme("uniform(step=0.4,k=256,scale=row)"),
    },
}
_OPSETS = (18, 21, 25)


def session(path: Path, *, folding: bool = True) -> ort.InferenceSession:
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    disabled = None if folding else ["ConstantFolding"]
    return ort.InferenceSession(
        path, options, providers=["CPUExecutionProvider"], disabled_optimizers=disabled
    )


def outputs(ran: ort.InferenceSession, images: Tensor) -> Tensor:
    name = ran.get_inputs()[0].name
    parts = [ran.run(None, {name: batch.numpy()})[0] for batch in images.split(500)]
    return torch.from_numpy(np.concatenate(parts))


def latency(contenders: dict[str, Callable[[], object]], turns: int) -> dict[str, float]:
    """Median milliseconds of the processor, in turns."""
    timed = race_of_processors(contenders, turns, repeats=10)
    return {name: found.median * 1e3 for name, found in timed.items()}


def memory(path: Path) -> int:
    """Bytes of the constants of a session after its optimizations."""
    options = ort.SessionOptions()
    options.log_severity_level = 3  # of files that are for this machine only
    options.optimized_model_filepath = str(path.with_suffix(".optimized"))
    ort.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    tensors = onnx.load(options.optimized_model_filepath).graph.initializer
    return sum(len(each.raw_data) for each in tensors)


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = Report("onnx", {"quick": arguments.quick})
    model: nn.Module = fashion_mnist_cnn.model()
    images, labels = fashion_mnist.load().test
    if arguments.quick:
        images, labels = images[:500], labels[:500]

    def accuracy(scores: Tensor) -> float:
        return (scores.argmax(1) == labels).double().mean().item()

    table = Table(
        f"Fashion-MNIST CNN in ONNX Runtime {ort.__version__}, {len(images)} test images",
        {
            "model": "", "opset": "d", "kB": ".1f", "packed kB": ".1f", "ratio": ".3f",
            "in session kB": ".1f", "accuracy": ".2%", "other answers": "d",
            "difference": ".1e", "ms": ".3f", "ms unfolded": ".3f",
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "float.onnx"
        program = torch.export.export(
            model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=21)
        written.save(path, external_data=False)
        plain = session(path)
        scores = outputs(plain, images)
        image = images[:1].numpy()
        name = plain.get_inputs()[0].name
        times = latency({"float": lambda: plain.run(None, {name: image})}, 30)
        table.rows.append(
            {
                "model": "float", "opset": 21, "kB": path.stat().st_size / 1e3,
                "in session kB": memory(path) / 1e3, "accuracy": accuracy(scores),
                "other answers": 0, "ms": times["float"],
            }
        )  # fmt: skip
        for label, schemes in _SETTINGS.items():
            small = vq.compress(model, schemes, fashion_mnist_cnn.calibration()).eval()
            expected = torch.cat([small(batch) for batch in images.split(500)])
            # Codes, codebooks and scales without gaps, and biases in float32.
            packed = vq.summary(small).nbytes
            for opset in _OPSETS:
                path = Path(folder) / f"{opset}.onnx"
                vq.export_onnx(small, path, images[:1], opset=opset)
                kept = onnx.load(path)
                del kept.graph.initializer[:]
                graph = kept.ByteSize()
                ran, unfolded = session(path), session(path, folding=False)
                found = outputs(ran, images)
                calls = {
                    "float": lambda: plain.run(None, {name: image}),
                    "folded": lambda ran=ran: ran.run(None, {name: image}),
                    "unfolded": lambda ran=unfolded: ran.run(None, {name: image}),
                }
                times = latency(calls, 5 if arguments.quick else 15)
                other = int((found.argmax(1) != expected.argmax(1)).sum())
                difference = float((found - expected).abs().max() / expected.abs().max())
                ratio = (path.stat().st_size - graph) / packed
                table.rows.append(
                    {
                        "model": label, "opset": opset, "kB": path.stat().st_size / 1e3,
                        "packed kB": packed / 1e3, "ratio": path.stat().st_size / (packed + graph),
                        "in session kB": memory(path) / 1e3, "accuracy": accuracy(found),
                        "other answers": other, "difference": difference,
                        "ms": times["folded"], "ms unfolded": times["unfolded"],
                    }
                )  # fmt: skip
                at = f"{label}, opset {opset}"
                report.checks += [
                    Check(f"{at}: file over packed codes", ratio, 1.25),
                    Check(f"{at}: outputs, largest difference", difference, 1e-5),
                    Check(f"{at}: answers that differ", other, 0),
                ]
    report.add(table)
    report.note("ratio: of the file to packed codes, codebooks, biases and the graph without them")
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
