"""ONNX files of compressed models, small because their weights are codes there too."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal

import onnx
import torch
from onnx import helper
from torch import nn

from vq_plugin.atomic import check_target, write_atomically
from vq_plugin.export import native_onnx
from vq_plugin.export.example import Example, exported
from vq_plugin.export.onnx_codes import Graph
from vq_plugin.export.plain import PlainModel, plain_model
from vq_plugin.nn import CodebookLayer

Operator = Literal["portable", "native"]
#: What torch writes at least, and what ONNX Runtime 1.32 still runs on the CPU.
OPSETS = range(18, 28)


def export_onnx(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    dynamic_batch: bool = True,
    operator: Operator = "portable",
    *,
    opset: int = 21,
) -> None:
    """Writes a compressed model as an ONNX file that keeps its codes.

    A runtime that folds constants, as ONNX Runtime does when it makes a session, has the decoded
    weights in memory from then on and the speed of the float model: the file is small, the session
    is not. Rows of embeddings are decoded when they are asked for.

    Args:
        model: A model with codebook weights; it is not changed, and is written in eval mode.
        path: The file; one that is there is replaced in one step.
        example: An input that the model runs on: a tensor, a tuple or list of positional
            arguments, or a mapping of keyword arguments.
        dynamic_batch: Whether the first size of every input is a batch of any size.
        operator: ``"portable"`` is standard operators only. ``"native"`` is operators that run
            from codes where the library of :func:`vq_plugin.onnxruntime_library` is registered,
            and are defined in the file by standard ones for everywhere else.
        opset: Version of ONNX's operators. From 21 on codes of 4 bits have a type of their own,
            from 25 on those of 2 bits; before, their bytes are taken apart by shifts.

    Raises:
        ImportError: Without the extra ``onnx``.
        OSError: If the file cannot be written.
        TypeError: If ``model`` is no module.
        ValueError: If the opset is none that can be written, the model has no codebook weights,
            does not run on the example, cannot take batches of any size, or has something that
            ONNX cannot express. An older file is then as it was.

    Example:
        >>> import tempfile, vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 32), vq.PQ(k=16, dim=4))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     vq.export_onnx(small, f"{folder}/small.onnx", torch.zeros(1, 64))
        ...     (Path(folder) / "small.onnx").stat().st_size < 32 * 64 * 4
        True
    """
    path = Path(path)
    check_target(path)
    if opset not in OPSETS:
        raise ValueError(f"opset {opset}: it can be one of {OPSETS[0]} to {OPSETS[-1]}")
    if operator not in ("portable", "native"):
        raise ValueError(f"operator {operator!r}: it can be 'portable' or 'native'")
    native = operator == "native"
    if native and opset < native_onnx.OPSET:
        raise ValueError(f"opset {opset}: native operators need {native_onnx.OPSET} or later")
    keep = native_onnx.has_kernel if native else _none
    plain = plain_model(model, tables=True, keep=keep)
    program = exported(plain.model, example, dynamic_batch=dynamic_batch)
    if native:
        program = program.run_decompositions(native_onnx.decompositions())
    written = _with_codes(program, plain, opset)
    if native:
        layers = {_join(name, "_codes"): layer.geometry for name, layer in plain.kept.items()}
        native_onnx.complete(written, layers)
    write_atomically(path, checked(written))


def _join(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name


def _none(layer: CodebookLayer) -> bool:
    return False


def _with_codes(
    program: torch.export.ExportedProgram, plain: PlainModel, opset: int
) -> onnx.ModelProto:
    """A program of a plain model with codes in the place of its weights."""
    given = {*plain.decoded}
    for name, table in (plain.tables | plain.kept).items():
        leaves = (
            ("_codes", "codebooks") if table.scale is None else ("_codes", "codebooks", "scale")
        )
        given |= {_join(name, leaf) for leaf in leaves}
    written = converted(program, opset, given)
    graph = Graph(opset)
    inputs = {each.name for each in written.graph.input}
    for name, decoded in plain.decoded.items():
        if name in inputs:
            graph.add_weight(name, decoded.coded, decoded.view)
    for name, table in plain.tables.items():
        graph.add_table(name, table)
    for name, layer in plain.kept.items():
        graph.add_operands(name, layer)
    outputs = {output for node in graph.nodes for output in node.output}
    kept = [each for each in written.graph.input if each.name not in outputs]
    del written.graph.input[:]
    written.graph.input.extend(kept)
    nodes = [*graph.nodes, *written.graph.node]
    del written.graph.node[:]
    written.graph.node.extend(nodes)
    written.graph.initializer.extend(graph.constants)
    return written


def converted(
    program: torch.export.ExportedProgram, opset: int, given: set[str]
) -> onnx.ModelProto:
    """A program in ONNX, whose parameters of the names ``given`` are inputs, and not optimized.

    ``ValueError`` if it has an operator that ONNX cannot express.
    """
    with _quiet():
        try:
            result = torch.onnx.export(
                program, dynamo=True, optimize=False, verbose=False, opset_version=opset
            )
        except torch.onnx.OnnxExporterError as error:
            raise ValueError(f"ONNX cannot express the model: {_reason(error)}") from error
        assert result is not None
        graph: Any = result.model.graph
        for name in sorted(given & set(graph.initializers)):
            # Inputs are no constants, which the optimizer folds where they are small.
            value = graph.initializers.pop(name)
            value.const_value = None
            graph.inputs.append(value)
        result.optimize()
        written: onnx.ModelProto = result.model_proto
    found = {each.domain: each.version for each in written.opset_import}[""]
    if found != opset:
        raise ValueError(f"the model cannot be written in opset {opset}: torch writes {found}")
    # Lines of code and folders of the machine that wrote it.
    for node in written.graph.node:
        del node.metadata_props[:]
        node.doc_string = ""
    for each in (written, written.graph, *written.graph.value_info, *written.graph.input):
        del each.metadata_props[:]
    for function in written.functions:
        del function.metadata_props[:]
        for node in function.node:
            del node.metadata_props[:]
    written.ir_version = helper.find_min_ir_version_for(written.opset_import, ignore_unknown=True)
    return written


def checked(written: onnx.ModelProto) -> bytes:
    """A model's bytes, valid to the checker of ONNX with strict inference of all shapes."""
    data: bytes = written.SerializeToString(deterministic=True)
    onnx.checker.check_model(data, full_check=True)
    return data


def _reason(error: BaseException) -> str:
    """The innermost cause; those around it tell how to report faults of torch."""
    while error.__cause__ is not None:
        error = error.__cause__
    return str(error).partition("\n")[0]


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of packages that are not there, and of its own faults."""
    logger = logging.getLogger("torch.onnx")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
