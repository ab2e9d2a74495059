"""Exported files in their runtimes, to be called as the models that they were made from."""

from __future__ import annotations

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

import vq_plugin.ops  # noqa: F401 - AOTInductor's packages call its operators
from vq_plugin.export.executorch_library import executorch_library
from vq_plugin.extension import onnxruntime_library


class Running(nn.Module):
    """A file that was loaded. It takes the model's arguments, and returns outputs as a list.

    Attributes:
        runtime: Name and version of what runs it.
    """

    def __init__(self, runtime: str, run: Callable[..., list[Tensor]]) -> None:
        super().__init__()
        self.runtime, self._run = runtime, run

    def forward(self, *args: Any, **kwargs: Any) -> list[Tensor]:
        """The outputs, on the CPU; files know no collections."""
        return self._run(*args, **kwargs)


def in_onnxruntime(path: Path, *, native: bool = False) -> Running:
    """An ONNX file in ONNX Runtime, with torch's number of threads; ``native``: and our library."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    if native:
        options.register_custom_ops_library(onnxruntime_library())
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [each.name for each in session.get_inputs()]

    def run(*args: Any, **kwargs: Any) -> list[Tensor]:
        given = {name: x.numpy() for name, x in zip(names, _tensors((args, kwargs)), strict=True)}
        return [torch.from_numpy(y) for y in session.run(None, given)]

    return Running(f"ONNX Runtime {onnxruntime.__version__}", run)


def in_aoti(path: Path) -> Running:
    """A package of AOTInductor."""
    package = torch._inductor.aoti_load_package(str(path))
    return Running(
        f"AOTInductor of torch {torch.__version__}",
        lambda *args, **kwargs: _tensors(package(*args, **kwargs)),
    )


def in_executorch(path: Path, *, native: bool = False) -> Running:
    """A program of ExecuTorch, in its Python runtime; ``native``: and our library."""
    from executorch.runtime import Runtime

    if native:
        torch.ops.load_library(executorch_library())  # type: ignore[no-untyped-call]
    program = Runtime.get().load_program(path)
    method = program.load_method("forward")

    # The method does not keep its program alive, and the next call writes over these outputs.
    def run(*args: Any, program: object = program, **kwargs: Any) -> list[Tensor]:
        given = [_laid_out(x) for x in _tensors((args, kwargs))]
        return [y.clone() for y in _tensors(method.execute(given))]

    return Running(f"ExecuTorch {version('executorch')}", run)


def _laid_out(value: Tensor) -> Tensor:
    """As ExecuTorch takes tensors: contiguous, or with channels last."""
    last = value.dim() == 4 and value.is_contiguous(memory_format=torch.channels_last)
    return value if last else value.contiguous()


def _tensors(value: object) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]
