"""Programs of torch as models of ONNX."""

from __future__ import annotations

import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import onnx
import torch
from onnx import helper
from torch import nn

from vq_plugin.export.native_onnx import add_definitions
from vq_plugin.export.onnx_codes import Graph
from vq_plugin.export.plain import PlainModel, join
from vq_plugin.nn import CodebookEmbedding
from vq_plugin.nn.slots import shown


def with_codes(
    program: torch.export.ExportedProgram, plain: PlainModel, opset: int
) -> onnx.ModelProto:
    """A program of a plain model, with codes in the place of its weights.

    Layers that it kept are nodes of :mod:`vq_plugin.export.native_onnx`. ``ValueError`` if ONNX
    cannot express the model.
    """
    for name, module in plain.model.named_modules():
        if isinstance(module, nn.LSTM) and module.proj_size:
            raise ValueError(
                f"layer {shown(name)}: ONNX has no LSTM with a projection "
                f"(proj_size={module.proj_size}): make it an nn.LSTM and an nn.Linear"
            )
    given = {*plain.decoded}
    for name, layer in (plain.tables | plain.kept).items():
        leaves = ["_codes", "codebooks"] + ["scale"] * (layer.scale is not None)
        given |= {join(name, leaf) for leaf in leaves}
    written = converted(program, opset, given)
    graph = Graph(opset)
    inputs = {each.name for each in written.graph.input}
    for name, decoded in plain.decoded.items():
        if name in inputs:
            graph.add_weight(name, decoded.coded, decoded.view)
    for name, table in plain.tables.items():
        graph.add_table(name, table)
    for name, layer in plain.kept.items():
        rows = isinstance(plain.model.get_submodule(name), CodebookEmbedding)
        graph.add_operands(name, layer, rows=rows)
    outputs = {output for node in graph.nodes for output in node.output}
    kept = [each for each in written.graph.input if each.name not in outputs]
    del written.graph.input[:]
    written.graph.input.extend(kept)
    nodes = [*graph.nodes, *written.graph.node]
    del written.graph.node[:]
    written.graph.node.extend(nodes)
    written.graph.initializer.extend(graph.constants)
    add_definitions(
        written, {join(name, "_codes"): layer.geometry for name, layer in plain.kept.items()}
    )
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
            raise ValueError(f"ONNX cannot express the model: {_reason(error, program)}") from error
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
    written.ir_version = helper.find_min_ir_version_for(written.opset_import, True)
    return written


def checked(written: onnx.ModelProto) -> bytes:
    """A model's bytes, valid to the checker of ONNX with strict inference of all shapes.

    ``ValueError`` if they are not.
    """
    data: bytes = written.SerializeToString(deterministic=True)
    try:
        onnx.checker.check_model(data, full_check=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError) as error:
        raise ValueError(f"torch wrote a graph that ONNX refuses: {error}") from error
    return data


def _reason(error: BaseException, program: torch.export.ExportedProgram) -> str:
    """The innermost cause, for those around it tell how to report faults of torch; and layers."""
    while error.__cause__ is not None:
        error = error.__cause__
    reason = str(error).partition("\n")[0]
    operator = re.search(r"op='([\w.]+)'", reason)
    if operator is None:
        return reason
    layers = {
        list(node.meta["nn_module_stack"].values())[-1][0]: None
        for graph in (program.graph, program.run_decompositions().graph)
        for node in graph.nodes
        if node.meta.get("nn_module_stack")
        and str(getattr(node.target, "name", str)()).replace("::", ".") == operator[1]
    }
    return f"{reason} (in {', '.join(map(shown, layers))})" if layers else reason


@contextmanager
def _quiet() -> Iterator[None]:
    """Without what torch says of packages that are not there, and of its own faults."""
    loggers = [logging.getLogger(name) for name in ("torch.onnx", "onnxscript", "onnx_ir")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
