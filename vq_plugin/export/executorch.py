"""ExecuTorch programs of compressed models, whose weights are codes of a byte."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from vq_plugin.atomic import check_target, write_atomically
from vq_plugin.export.example import Example, exported
from vq_plugin.export.extras import require
from vq_plugin.export.native_layers import Operator, check_operator
from vq_plugin.export.plain import plain_model
from vq_plugin.export.read_weights import read_by_others
from vq_plugin.ops.convolution import conv_in_torch
from vq_plugin.ops.library import dequantize_in_torch


def export_executorch(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    operator: Operator = "portable",
) -> None:
    """Writes a compressed model as a program of ExecuTorch that keeps its codes.

    Args:
        model: A model with codebook weights; it is not changed, and is written in eval mode.
        path: The file, ``.pte`` by custom; one that is there is replaced in one step.
        example: An input that the model runs on: a tensor, a tuple or list of positional
            arguments, or a mapping of keyword arguments. The program takes inputs of these sizes.
        operator: ``"portable"`` runs in any ExecuTorch with XNNPACK. A code takes a byte in the
            file, or two above 256 centers. Every pass decodes each weight and forgets it; products
            with it go to XNNPACK, convolutions to ExecuTorch's portable kernels. That is for files
            that have to be small: the float program is faster. ``"native"`` runs from codes, of 4
            bits up to 16 centers, and only where the library of
            :func:`vq_plugin.executorch_library` is loaded. Linear layers, convolutions of one group
            or cut by channels, and embeddings have an operator, with up to 256 centers; other
            weights are as in a portable program.

    Raises:
        ImportError: If ExecuTorch is not installed.
        OSError: If the file cannot be written.
        TypeError: If ``model`` is no module.
        ValueError: If the operator is neither, the model has no codebook weights, or does not run
            on the example. An older file is then as it was.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 32), vq.PQ(k=16, dim=4))
        >>> vq.export_executorch(small, "small.pte", torch.zeros(1, 64))  # doctest: +SKIP
    """
    path = Path(path)
    check_target(path)
    check_operator(operator)
    require("executorch", extra="executorch")
    program = coded_program(model, example, operator)
    from executorch.backends.xnnpack.partition.xnnpack_partitioner import XnnpackPartitioner
    from executorch.exir import to_edge_transform_and_lower

    lowered = to_edge_transform_and_lower(program, partitioner=[XnnpackPartitioner()])
    write_atomically(path, bytes(lowered.to_executorch().buffer))


def coded_program(
    model: nn.Module, example: Example, operator: Operator = "portable"
) -> torch.export.ExportedProgram:
    """A program of torch's own operators whose codes are ``uint8``, or more above 256 centers.

    ``"native"``: of ours for the layers that have one.
    """
    plain = plain_model(model, tables=True, keep=lambda layer: True)
    layers = plain.kept | plain.tables
    if operator == "native":
        from vq_plugin.export.native_executorch import take_operators

        read = read_by_others(plain.model, layers, example)
        own = {name: coded for name, coded in layers.items() if name not in read}
        rest = take_operators(plain.model, own)
        layers = rest | {name: layers[name] for name in read}
    for name, coded in layers.items():
        plain.model.get_submodule(name)._codes = coded.codes
    program = exported(plain.model, example, dynamic_batch=False)
    linear, conv = torch.ops.vq.codebook_linear, torch.ops.vq.codebook_conv
    table = {
        linear.default: _product,
        linear.inference: _product,
        linear.pointwise: lambda input, *rest: _product(input.mT, *rest).mT,
        conv.default: conv_in_torch,
        conv.inference: conv_in_torch,
    }
    decomposed: torch.export.ExportedProgram = program.run_decompositions(table)
    return decomposed


def _product(
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    bias: Tensor | None,
    out_features: int,
    *settings: Any,
) -> Tensor:
    shape = [out_features, input.shape[-1]]
    weight = dequantize_in_torch(codes, codebooks, scale, shape, *settings[:-1])
    # Of products XNNPACK takes this one alone where no factor is a constant.
    rows = input.reshape(1, -1, input.shape[-1])
    output = torch.bmm(rows, weight.mT.unsqueeze(0)).reshape(*input.shape[:-1], out_features)
    return output if bias is None else output + bias
