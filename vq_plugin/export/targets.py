"""What a model can be exported to, by name: file, writer, and the runtime that checks the file."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from vq_plugin.export.aoti import check_compiler, export_aoti
from vq_plugin.export.coreml import export_coreml
from vq_plugin.export.example import Example
from vq_plugin.export.executorch import export_executorch
from vq_plugin.export.executorch_library import executorch_library
from vq_plugin.export.extras import require
from vq_plugin.export.onnx import export_onnx
from vq_plugin.export.palettes import refusal
from vq_plugin.export.runtimes import Running, in_aoti, in_executorch, in_onnxruntime
from vq_plugin.extension import onnxruntime_library
from vq_plugin.schemes import Scheme


@dataclass(frozen=True)
class Target:
    """One runtime.

    Attributes:
        file: Name of its file in a folder of results; Core ML's is a folder.
        write: Writes a compressed model, as an exporter does.
        check: ``ImportError`` or ``RuntimeError`` for what this machine lacks to write and to run
            it.
        load: Its file in its runtime; ``None`` for Core ML, which predicts on macOS only.
        one_size: Whether a file takes inputs of the example's sizes only.
        refusal: Why a weight of a shape and a scheme cannot be expressed, or ``None``.
    """

    file: str
    write: Callable[[nn.Module, Path, Example], None]
    check: Callable[[], None]
    load: Callable[[Path], Running] | None
    one_size: bool = False
    refusal: Callable[[Scheme, tuple[int, ...]], str | None] = lambda scheme, shape: None


def _check_onnx() -> None:
    require("onnx", "onnxscript", extra="onnx")
    require("onnxruntime")


def _check_native_onnx() -> None:
    _check_onnx()
    onnxruntime_library()


def _check_native_executorch() -> None:
    executorch_library()


TARGETS = {
    "onnx": Target("model.onnx", export_onnx, _check_onnx, in_onnxruntime),
    "onnx_native": Target(
        "model.native.onnx",
        partial(export_onnx, operator="native"),
        _check_native_onnx,
        partial(in_onnxruntime, native=True),
    ),
    "coreml": Target(
        "model.mlpackage",
        export_coreml,
        partial(require, "coremltools", extra="coreml"),
        None,
        refusal=partial(refusal, target="iOS18"),
    ),
    "aoti": Target("model.pt2", export_aoti, check_compiler, in_aoti),
    "pte": Target(
        "model.pte",
        export_executorch,
        partial(require, "executorch", extra="executorch"),
        in_executorch,
        one_size=True,
    ),
    "pte_native": Target(
        "model.native.pte",
        partial(export_executorch, operator="native"),
        _check_native_executorch,
        partial(in_executorch, native=True),
        one_size=True,
    ),
}
