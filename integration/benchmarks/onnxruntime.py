"""Codebook layers in ONNX Runtime, beside its float layers, its MatMulNBits and our torch layers.

    python -m integration.benchmarks.onnxruntime [--quick]

A Linear(4096, 4096) with random codes (or random integers, for MatMulNBits in blocks of 32), and
the Fashion-MNIST CNN. Time is the processor's, of one thread, in turns. Memory is what a process
holds more after it made the session and ran it once.
"""

from __future__ import annotations

import ctypes
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
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
    torch_threads,
)

_FLOAT, _PORTABLE, _NATIVE = "ONNX Runtime, float", "portable", "native"
_TORCH, _TORCH_FLOAT = "torch, codebooks", "torch, float"
_BATCHES = (1, 32)
_BLOCK = 32


def _float_file(model: nn.Module, path: Path, example: Tensor) -> None:
    batch = torch.export.Dim("batch")
    program = torch.export.export(model, (example,), dynamic_shapes=({0: batch},))
    torch.onnx.export(program, (), path, dynamo=True, external_data=False, verbose=False)


def _integer_file(bits: int, size: int, path: Path) -> None:
    """ONNX Runtime's own layer of few bits, a scale for each block of inputs."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    generator = np.random.default_rng(0)
    blocks = (size, size // _BLOCK)
    values = generator.integers(0, 256, (*blocks, _BLOCK * bits // 8), dtype=np.uint8)
    scales = generator.random(blocks, dtype=np.float32) / 100
    node = helper.make_node(
        "MatMulNBits", ["input", "values", "scales"], ["output"], domain="com.microsoft",
        K=size, N=size, bits=bits, block_size=_BLOCK, accuracy_level=4,
    )  # fmt: skip
    places = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", size])
        for name in ("input", "output")
    ]
    constants = [
        numpy_helper.from_array(values, "values"),
        numpy_helper.from_array(scales, "scales"),
    ]
    graph = helper.make_graph([node], "graph", places[:1], places[1:], constants)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), path)


def _session(path: Path, *, native: bool) -> Callable[[Tensor], Any]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    if native:
        options.register_custom_ops_library(vq.onnxruntime_library())
    session = onnxruntime.InferenceSession(path, options)
    name = session.get_inputs()[0].name
    return lambda value: session.run(None, {name: value.numpy()})[0]


def _memory(path: Path, native: bool, shape: list[int]) -> float:
    """Bytes that a process holds for a session."""
    command = [sys.executable, "-m", __spec__.name, str(path), str(int(native)), json.dumps(shape)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return float(done.stdout.splitlines()[-1])


def _measured(path: Path, native: bool, shape: list[int]) -> int:
    # What the first session of a process loads.
    _session(path.with_name("first.onnx"), native=native)(torch.zeros(1, 64))
    before = _held()
    call = _session(path, native=native)
    call(torch.zeros(shape))
    return _held() - before


def _held() -> int:
    """Resident bytes, without those that were freed and not given back."""
    ctypes.CDLL(None).malloc_trim(0)
    return resident("VmRSS")


def _compare(
    report: Report, title: str, model: nn.Module, small: nn.Module, example: Tensor,
    peers: Mapping[str, Callable[[Path], None]], seconds: float, folder: Path,
) -> None:  # fmt: skip
    table = Table(
        f"{title}, one thread",
        {
            "layer": "", "file MB": ".2f", "memory MB": ".1f", "of float": ".3f",
            **{f"batch {batch}, ms": ".3f" for batch in _BATCHES},
        },
    )  # fmt: skip
    _float_file(model, folder / "float.onnx", example)
    for form in (_PORTABLE, _NATIVE):
        vq.export_onnx(small, folder / f"{form}.onnx", example, operator=form)  # type: ignore[arg-type]
    files = {_FLOAT: "float.onnx", _PORTABLE: "portable.onnx", _NATIVE: "native.onnx"}
    for peer, write in peers.items():
        write(folder / f"{peer}.onnx")
        files[peer] = f"{peer}.onnx"
    runs: dict[str, Callable[[Tensor], Any]] = {
        run: _session(folder / file, native=run == _NATIVE) for run, file in files.items()
    }
    runs |= {_TORCH_FLOAT: model, _TORCH: small}
    held = {
        run: _memory(folder / file, run == _NATIVE, [1, *example.shape[1:]]) / 1e6
        for run, file in files.items()
    }
    sizes = {run: (folder / file).stat().st_size / 1e6 for run, file in files.items()}
    weights = sum(each.nbytes for each in model.parameters()) / 1e6
    found = {}
    for batch in _BATCHES:
        value = torch.randn(batch, *example.shape[1:])
        calls = {run: partial(call, value) for run, call in runs.items()}
        found[batch] = medians(calls, seconds, clock=time.process_time)
    for run in runs:
        row: dict[str, Any] = {"layer": run, "file MB": sizes.get(run)}
        row |= {f"batch {batch}, ms": found[batch][run] * 1e3 for batch in _BATCHES}
        if run in held:
            row |= {"memory MB": held[run], "of float": held[run] / weights}
        table.rows.append(row)
    report.add(table)
    short = title.partition(":")[0]
    report.checks.append(
        Check(
            f"{short}: memory of a native session, of float weights", held[_NATIVE] / weights, 1 / 8
        )
    )
    for batch, times in found.items():
        for other, most in ((_TORCH, 1.1), (_FLOAT, 1.0)):
            ratio = times[_NATIVE] / times[other]
            report.checks.append(Check(f"{short}, batch {batch}: native, of {other}", ratio, most))


@torch.no_grad()
def main() -> None:
    warnings.simplefilter("ignore")
    arguments = parse_arguments(__doc__.splitlines()[0])
    report = Report("onnxruntime", {"quick": arguments.quick})
    size, seconds = (128, 0.05) if arguments.quick else (4096, 6.0)
    scheme = vq.PQ(k=16, dim=4)
    layer = nn.Linear(size, size).eval()
    peers = {
        f"MatMulNBits, {bits} bits": lambda path, bits=bits: _integer_file(bits, size, path)
        for bits in (4, 2)
    }
    with torch_threads(1), tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        first = vq.compress(nn.Linear(64, 64), scheme)
        vq.export_onnx(first, folder / "first.onnx", torch.zeros(2, 64), operator="native")
        _compare(
            report, f"Linear({size}, {size}): {scheme}", layer, random_codes(layer, scheme),
            torch.zeros(2, size), peers, seconds, folder,
        )  # fmt: skip
        if arguments.quick:
            from vq_plugin.workloads import digits as workload

            network = "CNN on digits"
        else:
            from integration.workloads import fashion_mnist_cnn as workload  # type: ignore[no-redef]

            network = "Fashion-MNIST CNN"
        model = workload.model().eval()
        example = next(iter(workload.calibration()))[:2].clone()
        schemes = {nn.Linear: scheme, "*": vq.KM(k=16)}
        small = vq.compress(model, schemes).eval()
        _compare(
            report, f"{network}: {scheme}, convolutions {vq.KM(k=16)}", model, small, example,
            {}, seconds, folder,
        )  # fmt: skip
    report.finish(arguments.output)


if __name__ == "__main__":
    if len(sys.argv) == 4 and sys.argv[1].endswith(".onnx"):
        print(_measured(Path(sys.argv[1]), sys.argv[2] == "1", json.loads(sys.argv[3])))
    else:
        main()
