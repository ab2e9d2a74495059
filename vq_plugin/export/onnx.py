"""ONNX files of compressed models, small because their weights are codes there too."""

from __future__ import annotations

import os
from pathlib import Path

from torch import nn

from vq_plugin.atomic import check_target, write_atomically
from vq_plugin.export.example import Example, exported
from vq_plugin.export.extras import require
from vq_plugin.export.native_layers import Operator, check_operator, has_kernel
from vq_plugin.export.plain import plain_model
from vq_plugin.export.read_weights import read_by_others

#: Those that torch writes for every model; others it converts, and not all models.
OPSETS = range(18, 26)


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
            and are defined in the file by standard ones for everywhere else; from opset 21 on.
            Linear layers, 1x1 convolutions, convolutions of channels and embeddings have one, with
            up to 256 centers (convolutions of channels 16); other weights are portable.
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
        >>> import tempfile, torch, vq_plugin as vq
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
    check_operator(operator)
    require("onnx", "onnxscript", extra="onnx")
    from vq_plugin.export import native_onnx
    from vq_plugin.export.onnx_file import checked, with_codes

    if operator == "native":
        if opset < native_onnx.OPSET:
            raise ValueError(f"opset {opset}: native operators need {native_onnx.OPSET} or later")
        plain = plain_model(model, tables=True, keep=has_kernel)
        if read := read_by_others(plain.model, [*plain.kept, *plain.tables], example):
            plain = plain_model(model, tables=True, keep=has_kernel, decode=read)
        native_onnx.look_up_by_nodes(plain.model)
        program = exported(plain.model, example, dynamic_batch=dynamic_batch)
        program = program.run_decompositions(native_onnx.decompositions())
    else:
        plain = plain_model(model, tables=True)
        program = exported(plain.model, example, dynamic_batch=dynamic_batch)
    write_atomically(path, checked(with_codes(program, plain, opset)))
