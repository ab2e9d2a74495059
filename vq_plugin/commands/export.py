"""``vq-plugin export``: a compressed file for another runtime."""

from __future__ import annotations

import argparse
import logging
from pathlib import Path
from typing import Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command, add_json, as_json
from vq_plugin.console import say

_log = logging.getLogger(__name__)


def add_export(commands: Any) -> None:
    """Adds ``export`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "export",
        _export,
        summary="write a compressed file for another runtime",
        example="vq-plugin export model.vq --to onnx --model my_package:model "
        "--example my_package:batches --output model.onnx",
        reads="file",
    )
    parser.add_argument("file", help="compressed file")
    parser.add_argument("--to", required=True, choices=[*_TARGETS], help="what the runtime reads")
    parser.add_argument(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns a float model of the same layers; its values do not matter",
    )
    parser.add_argument(
        "--example",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns input batches, such as a recipe's calibration; the first is "
        "the example",
    )
    parser.add_argument("--opset", type=int, help="of ONNX (default 21)")
    parser.add_argument(
        "--operator",
        choices=["portable", "native"],
        default="portable",
        help="of ONNX and ExecuTorch: their own, or those of vq_plugin's operator libraries "
        "(default portable)",
    )
    parser.add_argument(
        "--fixed-batch", action="store_true", help="only batches of the example's size"
    )
    parser.add_argument("--output", required=True, metavar="FILE", help="file to write")
    add_json(parser)


def _export(options: argparse.Namespace) -> int:
    from vq_plugin.atomic import check_target
    from vq_plugin.checkpoint import load
    from vq_plugin.recipe.references import batches, call
    from vq_plugin.select import check_model
    from vq_plugin.table import format_bytes

    # An option that would be left out without a word.
    if options.opset is not None and options.to != "onnx":
        raise ValueError(f"--opset is for onnx, and nothing of {options.to}")
    if options.operator == "native" and options.to not in ("onnx", "pte"):
        raise ValueError(f"--operator native is for onnx and pte, and nothing of {options.to}")
    file, output = Path(options.file), Path(options.output)
    if output.exists() and file.exists() and output.samefile(file):
        raise ValueError(f"{options.output} is the file to export: give --output another name")
    if options.to != "coreml":
        # Its packages are folders, and looked at where they are written.
        check_target(output)
    model = call(options.model)
    check_model(model)
    small = load(options.file, model)
    batch = next(iter(batches(options.example)), None)
    if batch is None:
        raise ValueError(f"{options.example!r} returned no batches")
    _log.info("export")
    try:
        _TARGETS[options.to](small, batch, options)
    except (ImportError, RuntimeError) as error:
        # A package or a compiler that this machine lacks, or what a compiler refuses.
        raise ValueError(f"{options.to}: {error}") from error
    size, before = _nbytes(output), _nbytes(file)
    if options.json:
        say(as_json({"file": options.output, "file_nbytes": size, "compressed_nbytes": before}))
    else:
        say(f"{options.output}: {format_bytes(size)} ({options.file}: {format_bytes(before)})")
    return WITHIN_BUDGET


def _nbytes(path: Path) -> int:
    """Of a file, or of all in a package, which is a folder."""
    files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files)


def _to_onnx(small: Any, batch: Any, options: argparse.Namespace) -> None:
    from vq_plugin.export.onnx import export_onnx

    export_onnx(
        small,
        options.output,
        batch,
        dynamic_batch=not options.fixed_batch,
        operator=options.operator,
        opset=21 if options.opset is None else options.opset,
    )


def _to_coreml(small: Any, batch: Any, options: argparse.Namespace) -> None:
    from vq_plugin.export.coreml import export_coreml

    export_coreml(small, options.output, batch, not options.fixed_batch)


def _to_aoti(small: Any, batch: Any, options: argparse.Namespace) -> None:
    from vq_plugin.export.aoti import export_aoti

    export_aoti(small, options.output, batch, dynamic_batch=not options.fixed_batch)


def _to_pte(small: Any, batch: Any, options: argparse.Namespace) -> None:
    from vq_plugin.export.executorch import export_executorch

    export_executorch(small, options.output, batch, options.operator)


# What --to can be.
_TARGETS = {"onnx": _to_onnx, "coreml": _to_coreml, "aoti": _to_aoti, "pte": _to_pte}
