"""Core ML packages of compressed models, whose weights are palettes."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Literal, get_args

from torch import nn

from vq_plugin.atomic import naming, replace_folder
from vq_plugin.export.example import Example, exported
from vq_plugin.export.extras import quiet, require
from vq_plugin.export.plain import plain_model

Target = Literal["iOS16", "iOS17", "iOS18"]


def export_coreml(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    dynamic_batch: bool = True,
    *,
    target: Target = "iOS18",
) -> None:
    """Writes a compressed model as a Core ML package whose weights are palettes.

    KM and PQ layers become ``constexpr_lut_to_dense``, with exactly the values of their codebooks:
    ``k`` is filled up to a power of two, and groups of rows get tables of their own. Everything
    else is computed in float16, as Core ML does. What a palette cannot hold is refused by the name
    of its layer, as it would be written in float.

    Args:
        model: A model with codebook weights; it is not changed, and is written in eval mode.
        path: The package, ``*.mlpackage``; one that is there is replaced.
        example: As for :func:`vq_plugin.export_onnx`.
        dynamic_batch: Whether the first size of every input is a batch of any size.
        target: The oldest system that reads it. Before iOS18, which is also macOS 15, there are
            palettes of single values with one table only: KM without a group.

    Raises:
        ImportError: Without the extra ``coreml``.
        OSError: If the package cannot be written.
        TypeError: If ``model`` is no module.
        ValueError: If the target or the path is of another kind, the model has no codebook
            weights, does not run on the example, or has a layer that the target cannot express. An
            older package is then as it was.

    Example:
        >>> import torch, vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(64, 32))
        >>> small = vq.compress(model, vq.RQ(k=16, stages=2, dim=4))
        >>> vq.export_coreml(small, "small.mlpackage", torch.zeros(1, 64))
        Traceback (most recent call last):
        ValueError: layer '0': palettes have one table, not 2 that are added; use KM or PQ
    """
    path = Path(path)
    if target not in get_args(Target):
        raise ValueError(f"target {target!r}: it can be {', '.join(get_args(Target))}")
    if path.suffix != ".mlpackage":
        raise ValueError(f"{path}: Core ML reads packages by the name *.mlpackage")
    if not path.absolute().parent.is_dir():
        raise FileNotFoundError(f"{path}: its folder does not exist")
    require("coremltools", extra="coreml")
    plain = plain_model(model, tables=False)
    from vq_plugin.export.palettes import palette

    palettes = {}
    for name, decoded in plain.decoded.items():
        try:
            palettes[name] = palette(decoded.coded, decoded.view, target)
        except ValueError as error:
            raise ValueError(f"layer {decoded.layer}: {error}") from error
    with quiet():
        from vq_plugin.export.coreml_program import save

    program = exported(plain.model, example, dynamic_batch=dynamic_batch)
    with naming(path), tempfile.TemporaryDirectory(dir=path.parent, prefix=".vq_plugin.") as beside:
        fresh = Path(beside) / path.name
        save(program, plain, palettes, target, fresh)
        replace_folder(fresh, path)


def decoded_share(model: nn.Module, path: Path) -> tuple[int, int]:
    """How many coded weights a model has, and how many a package holds with the same bits."""
    with quiet():
        from vq_plugin.export.coreml_program import constants

    plain = plain_model(model, tables=False)
    values = [plain.model.get_parameter(name).detach().half() for name in plain.decoded]
    found = {(each.shape, each.tobytes()) for each in constants(path)}
    same = [(tuple(each.shape), each.numpy().tobytes()) in found for each in values]
    return len(same), sum(same)
