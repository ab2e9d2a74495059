"""Codebooks in ONNX files beside onnxsim's, on the dense layers of the Fashion-MNIST CNN.

    python -m integration.benchmarks.onnx_peers [--quick]

Needs onnxsim, which is in no extra. Both compress the three dense layers alone, as onnxsim knows no
others, with the same numbers of codes and centers and the same 512 unlabelled images. Files are
what is written, run by ONNX Runtime on all test images; fits and runs take time of the processor,
one thread, in turns.
"""

from __future__ import annotations

import tempfile
import time
import warnings
from collections import Counter
from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import onnx
import onnxruntime as ort
import torch
from onnx import ModelProto, TensorProto
from onnxsim.aqlm import quantize_weight_only_aqlm
from onnxsim.gptvq import quantize_weight_only_gptvq
from onnxsim.kmeans_quantization import quantize_weight_only_kmeans
from torch import nn

import vq_plugin as vq
from integration.benchmarks.harness import Report, Table, parse_arguments
from integration.benchmarks.onnx import latency, outputs, session
from integration.workloads import fashion_mnist, fashion_mnist_cnn


def integers(path: Path) -> str:
    """The types of the constants of a file that are codes, with their kB."""
    sizes: Counter[str] = Counter()
    for tensor in onnx.load(path).graph.initializer:
        kind = TensorProto.DataType.Name(tensor.data_type).lower()
        if "int" in kind and tensor.ByteSize() > 1000:
            sizes[kind] += tensor.ByteSize()
    return ", ".join(f"{kind} {size / 1e3:.0f} kB" for kind, size in sizes.items()) or "none"


def used_nbytes(path: Path) -> int:
    """Bytes of a file without the constants that no node reads."""
    model = onnx.load(path)
    read = {value for node in model.graph.node for value in node.input}
    kept = [each for each in model.graph.initializer if each.name in read]
    del model.graph.initializer[:]
    model.graph.initializer.extend(kept)
    return model.ByteSize()


@torch.no_grad()
def main() -> None:
    arguments = parse_arguments(__doc__.splitlines()[0])
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    report = Report("onnx_peers", {"quick": arguments.quick})
    model: nn.Module = fashion_mnist_cnn.model()
    images, labels = fashion_mnist.load().test
    calibration = fashion_mnist_cnn.calibration()
    if arguments.quick:
        images, labels, calibration = images[:500], labels[:500], calibration[:1]
    table = Table(
        f"Dense layers of the Fashion-MNIST CNN, onnxsim {version('onnxsim')} and "
        f"ONNX Runtime {ort.__version__}, {len(images)} test images",
        {
            "setting": "", "by": "", "accuracy": ".2%", "kB": ".1f", "kB used": ".1f",
            "codes in the file": "",
            "fit s": ".1f", "ms": ".3f", "ms unfolded": ".3f",
        },
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        plain = folder / "float.onnx"
        program = torch.export.export(
            model, (images[:2],), dynamic_shapes=({0: torch.export.Dim("batch")},)
        )
        written: Any = torch.onnx.export(program, dynamo=True, verbose=False, opset_version=21)
        written.save(plain, external_data=False)
        source = onnx.load(plain)
        (given,) = (each.name for each in source.graph.input)
        image = images[:1].numpy()
        batches = [{given: batch.numpy()} for batch in calibration]
        settings: dict[str, tuple[Callable[[], ModelProto] | None, vq.Scheme | None]] = {
            "float": (None, None),
            "16 values": (
                lambda: quantize_weight_only_kmeans(source, bits=4),
                vq.KM(k=16),
            ),
            "16 vectors of 4": (
                lambda: quantize_weight_only_gptvq(
                    source, batches, vector_dim=4, num_centroids=16, num_samples=len(batches)
                ),
                vq.PQ(k=16, dim=4, codebooks="tensor"),
            ),
            "256 vectors of 8": (
                lambda: quantize_weight_only_gptvq(
                    source, batches, vector_dim=8, num_centroids=256, num_samples=len(batches)
                ),
                vq.PQ(k=256, dim=8, codebooks="tensor"),
            ),
            "2 sums of 256 vectors of 8": (
                lambda: quantize_weight_only_aqlm(source),
                vq.RQ(k=256, stages=2, dim=8, codebooks="tensor"),
            ),
        }
        for setting, (theirs, scheme) in settings.items():
            files: dict[str, tuple[Path, float]] = {}
            if theirs is None or scheme is None:
                files["torch.onnx"] = plain, 0.0
            else:
                path, began = folder / "theirs.onnx", time.process_time()
                onnx.save(theirs(), path)
                files["onnxsim"] = path, time.process_time() - began
                path, began = folder / "ours.onnx", time.process_time()
                small = vq.compress(model, {nn.Linear: scheme}, calibration).eval()
                took = time.process_time() - began
                vq.export_onnx(small, path, images[:1])
                files["vq_plugin"] = path, took
            runs = {by: session(path) for by, (path, _) in files.items()}
            unfolded = {by: session(path, folding=False) for by, (path, _) in files.items()}
            calls = {
                f"{by}{kind}": lambda ran=ran: ran.run(None, {ran.get_inputs()[0].name: image})
                for kind, sessions in (("", runs), ("unfolded", unfolded))
                for by, ran in sessions.items()
            }
            times = latency(calls, 5 if arguments.quick else 15)
            for by, (path, took) in files.items():
                answers = outputs(runs[by], images).argmax(1)
                table.rows.append(
                    {
                        "setting": setting, "by": by, "kB": path.stat().st_size / 1e3,
                        "kB used": used_nbytes(path) / 1e3,
                        "accuracy": (answers == labels).double().mean().item(),
                        "codes in the file": integers(path), "fit s": took,
                        "ms": times[by], "ms unfolded": times[f"{by}unfolded"],
                    }
                )  # fmt: skip
    report.add(table)
    report.note("onnxsim: k-means, GPTVQ (twice) and AQLM, its additive mode of residual k-means")
    report.note("kB used: without constants that no node of the file reads")
    report.note("convolutions stay float in all files")
    report.finish(arguments.output)


if __name__ == "__main__":
    main()
