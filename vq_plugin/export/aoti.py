"""AOTInductor packages of compressed models, which run the kernels on codes."""

from __future__ import annotations

import io
import os
import zipfile
from pathlib import Path

import torch
from torch import nn

from vq_plugin.atomic import check_target, write_atomically
from vq_plugin.eval_mode import eval_mode
from vq_plugin.export.compiler import cpp_compiler
from vq_plugin.export.example import Example, exported
from vq_plugin.export.plain import check_compressed


def export_aoti(
    model: nn.Module,
    path: str | os.PathLike[str],
    example: Example,
    dynamic_batch: bool = True,
) -> None:
    """Compiles a compressed model with AOTInductor, into a package that keeps its codes.

    Layers that have a kernel run from their codes: the package calls the operators of
    :mod:`vq_plugin.ops`, so a process that loads it imports that first. Other weights are decoded
    in every pass. Constant folding of inductor, ``torch._inductor.config.freezing``, would write
    float weights and is off. The package is deflated, where torch stores what it compiles as it is.

    Args:
        model: A model with codebook weights, or a graph of ``convert_pt2e`` that has them; it is
            not changed, and compiled in eval mode.
        path: The file, which ends in ``.pt2``; one that is there is replaced in one step.
        example: An input that the model runs on: a tensor, a tuple or list of positional
            arguments, or a mapping of keyword arguments.
        dynamic_batch: Whether the first size of every input is a batch of any size.

    Raises:
        OSError: If the file cannot be written.
        RuntimeError: If there is no C++ compiler, or inductor cannot compile the model.
        TypeError: If ``model`` is no module.
        ValueError: If the path does not end in ``.pt2``, the model has no codebook weights, does
            not run on the example, or cannot take batches of any size. An older file is then as
            it was.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 32), vq.PQ(k=16, dim=4))
        >>> vq.export_aoti(small, "small.pt2", torch.zeros(1, 64))  # doctest: +SKIP
        >>> torch._inductor.aoti_load_package("small.pt2")(torch.zeros(1, 64))  # doctest: +SKIP
    """
    path = Path(path)
    check_target(path)
    if path.suffix != ".pt2":
        raise ValueError(f"{path}: torch loads packages from files that end in .pt2")
    check_compressed(model)
    check_compiler()
    package = io.BytesIO()
    with torch.no_grad(), eval_mode(model), torch._inductor.config.patch(settings()):
        program = exported(model, example, dynamic_batch=dynamic_batch)
        torch._inductor.aoti_compile_and_package(program, package_path=package)
    write_atomically(path, deflated(package))


def settings() -> dict[str, bool]:
    """Settings of inductor for packages that are small."""
    # Tables for debuggers, larger than the code that they are about.
    lines = "aot_inductor.enable_line_tables"
    known = hasattr(torch._inductor.config.aot_inductor, lines.rpartition(".")[2])
    return {"freezing": False, **({lines: False} if known else {})}


def deflated(package: io.BytesIO) -> bytes:
    """A zip file with the same content, of which torch's loader inflates each part into a file."""
    small = io.BytesIO()
    with zipfile.ZipFile(package) as stored, zipfile.ZipFile(small, "w") as packed:
        for name in stored.namelist():
            # A date of its own, the same in every package.
            entry = zipfile.ZipInfo(name)
            packed.writestr(entry, stored.read(name), zipfile.ZIP_DEFLATED)
    return small.getvalue()


def check_compiler() -> None:
    """``RuntimeError`` if there is no C++ compiler."""
    cpp_compiler("AOTInductor")
