"""The command line: ``vq-plugin`` and its commands."""

from __future__ import annotations

import argparse
import math
import os
import platform
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from importlib import import_module
from pathlib import Path

import torch
from torch import nn

import vq_plugin
from vq_plugin import ops
from vq_plugin.atomic import check_target
from vq_plugin.checkpoint import load, read_header, save
from vq_plugin.coding.bits import code_bits
from vq_plugin.compress import compress
from vq_plugin.console import Terminated, complain, say, terminated_by_signal
from vq_plugin.export.coreml import export_coreml
from vq_plugin.export.onnx import export_onnx
from vq_plugin.format.header import FORMAT, LEAVES, join
from vq_plugin.recipe import run_recipe
from vq_plugin.recipe.commands import add_recipe_commands
from vq_plugin.recipe.references import resolve
from vq_plugin.recipe.run import Outcome
from vq_plugin.schemes import PRESETS, parse_scheme
from vq_plugin.select import Choice
from vq_plugin.summary import summary
from vq_plugin.table import format_bytes, format_table
from vq_plugin.tuning.cluster import dask_cluster
from vq_plugin.tuning.report import format_result
from vq_plugin.tuning.tracking import TrackingError, ensure_experiment, log_run

WITHIN_BUDGET, BAD_INPUT, NOT_REACHED = 0, 2, 3
# As shells have it: 128 and the number of the signal, as for others that end a command.
INTERRUPTED = 130


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's own.

    Returns:
        0 = done, within budget; 2 = bad input; 3 = budget not reached; 130, 143 and 129 = ended by
        Ctrl-C, by SIGTERM, and with its terminal. Output that nobody takes changes none of them.
    """
    options = _parser().parse_args(arguments)
    try:
        with terminated_by_signal():
            status: int = options.run(options)
    except (ValueError, TypeError, OSError, ImportError, TrackingError) as error:
        complain(f"vq-plugin: {error}")
        return BAD_INPUT
    except SystemExit as error:
        # Exit code 0 of the user's code would pass for a verdict.
        complain(f"vq-plugin: the code of the recipe called sys.exit({error.code})")
        return BAD_INPUT
    except KeyboardInterrupt:
        complain("vq-plugin: interrupted")
        return INTERRUPTED
    except Terminated as error:
        complain("vq-plugin: terminated")
        return 128 + error.number
    return status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vq-plugin",
        description="Codebook compression of PyTorch models.",
        epilog="Exit codes: 0 = done, within budget; 2 = bad input; 3 = budget not reached.",
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    tune = commands.add_parser("tune", help="find the smallest setting within a loss budget")
    tune.add_argument("recipe", help="YAML recipe")
    tune.add_argument("--output", metavar="DIR", help="folder for the results, not the recipe's")
    tune.add_argument(
        "--workers",
        type=int,
        default=1,
        metavar="N",
        help="fits and evaluations at a time, each in a process of its own (default 1: this one)",
    )
    tune.add_argument(
        "--backend",
        default="loky",
        help="what runs the workers: loky (processes of this machine), dask, or any of joblib's",
    )
    tune.add_argument(
        "--scheduler",
        metavar="ADDRESS",
        help="Dask scheduler, such as tcp://10.0.0.5:8786; without it, --backend dask starts "
        "N workers on this machine",
    )
    tune.add_argument(
        "--mlflow",
        metavar="EXPERIMENT",
        help="log the run to this experiment of MLflow; MLFLOW_TRACKING_URI says where",
    )
    tune.set_defaults(run=_tune)

    squeeze = commands.add_parser("compress", help="compress a model with given schemes")
    squeeze.add_argument(
        "model", metavar="MODULE:FUNCTION", help="function that returns the trained float model"
    )
    squeeze.add_argument(
        "--scheme",
        help="scheme for all layers, such as 'pq(k=16,dim=4)', or a preset: 'auto', 'small'",
    )
    squeeze.add_argument(
        "--layer",
        nargs=2,
        action="append",
        default=[],
        metavar=("PATTERN", "SCHEME"),
        help="scheme or preset for a layer's name or 're:…'; 'none' leaves it; may be repeated",
    )
    squeeze.add_argument(
        "--calibration", metavar="MODULE:FUNCTION", help="function that returns input batches"
    )
    squeeze.add_argument(
        "--evaluate", metavar="MODULE:FUNCTION", help="metric, printed before and after"
    )
    squeeze.add_argument("--seed", type=int, default=0, help="seed of the fits (default 0)")
    squeeze.add_argument(
        "--rest",
        choices=["float16"],
        help="round biases, norms and layers left as they are in the file",
    )
    squeeze.add_argument("--output", required=True, metavar="FILE", help="compressed file")
    squeeze.set_defaults(run=_compress)

    export = commands.add_parser("export", help="write a compressed file for another runtime")
    export.add_argument("file", help="compressed file")
    export.add_argument(
        "--to", required=True, choices=["onnx", "coreml"], help="what the runtime reads"
    )
    export.add_argument(
        "--model",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns a float model of the same layers; its values do not matter",
    )
    export.add_argument(
        "--example",
        required=True,
        metavar="MODULE:FUNCTION",
        help="function that returns input batches, such as a recipe's calibration; the first is "
        "the example",
    )
    export.add_argument("--opset", type=int, default=21, help="of ONNX (default 21)")
    export.add_argument(
        "--fixed-batch", action="store_true", help="only batches of the example's size"
    )
    export.add_argument("--output", required=True, metavar="FILE", help="file to write")
    export.set_defaults(run=_export)

    inspect = commands.add_parser("inspect", help="show what a compressed file holds")
    inspect.add_argument("file")
    inspect.set_defaults(run=_inspect)

    doctor = commands.add_parser("doctor", help="show versions, this machine and its kernels")
    doctor.set_defaults(run=_doctor)

    add_recipe_commands(commands)
    return parser


def _tune(options: argparse.Namespace) -> int:
    if options.scheduler is not None and options.backend != "dask":
        raise ValueError("--scheduler needs --backend dask")
    if options.mlflow is not None:
        # What would keep the run from being tracked shows before the search, not after it.
        ensure_experiment(options.mlflow)
    cluster: AbstractContextManager[None] = nullcontext()
    if options.backend == "dask":
        cluster = dask_cluster(options.workers, options.scheduler)
    with cluster:
        outcome = run_recipe(
            options.recipe, options.output, workers=options.workers, backend=options.backend
        )
    say(format_result(outcome.result, outcome.model_path))
    say(f"report: {outcome.report_path.with_suffix('.html')}")
    if options.mlflow is not None:
        _track(outcome, Path(options.recipe), options.mlflow)
    return WITHIN_BUDGET if outcome.result.passed else NOT_REACHED


def _track(outcome: Outcome, recipe: Path, experiment: str) -> None:
    folder = outcome.report_path.parent
    try:
        run = log_run(outcome.result, folder=folder, recipe=recipe, experiment=experiment)
    except TrackingError as error:
        # The gate is the verdict: a server that is away does not stop a release.
        complain(f"vq-plugin: warning: {error}")
    else:
        say(f"mlflow: run {run} of experiment {experiment!r}")


def _compress(options: argparse.Namespace) -> int:
    schemes: dict[str | type[nn.Module], Choice | None] = {
        pattern: None if text.lower() == "none" else _choice(text)
        for pattern, text in options.layer
    }
    if options.scheme is not None:
        schemes["*"] = _choice(options.scheme)
    if not any(schemes.values()):
        raise ValueError("nothing to do: give --scheme or --layer")
    check_target(Path(options.output))
    model = _model(options.model)
    calibration = None if options.calibration is None else resolve(options.calibration)()
    small = compress(model, schemes, calibration, options.seed)
    save(small, options.output, rest=options.rest)
    sizes = summary(small, rest=options.rest)
    say(str(sizes))
    say(f"file: {options.output} (file rate {sizes.file_rate(options.output):.1f}x)")
    if options.evaluate is not None:
        evaluate = resolve(options.evaluate)
        say(f"metric: {evaluate(model):.4f} -> {evaluate(small):.4f}")
    return WITHIN_BUDGET


def _export(options: argparse.Namespace) -> int:
    small = load(options.file, _model(options.model))
    batch = next(iter(resolve(options.example)()), None)
    if batch is None:
        raise ValueError(f"{options.example!r} returned no batches")
    dynamic = not options.fixed_batch
    if options.to == "coreml":
        export_coreml(small, options.output, batch, dynamic)
    else:
        export_onnx(small, options.output, batch, dynamic, opset=options.opset)
    say(f"written: {options.output}")
    return WITHIN_BUDGET


def _model(reference: str) -> nn.Module:
    model = resolve(reference)()
    if not isinstance(model, nn.Module):
        raise ValueError(f"{reference!r} returned {model!r}, not an nn.Module")
    return model


def _choice(text: str) -> Choice:
    return PRESETS.get(text) or parse_scheme(text)


def _inspect(options: argparse.Namespace) -> int:
    header, sizes = read_header(options.file)
    rows = []
    for name, stored in header.weights():
        layer, k = header.layers[stored], header.books(stored)[3]
        sizes_of = {leaf: sizes.get(join(stored, leaf), 0) for leaf in LEAVES}
        # Of coded codes the mean, with their tables.
        bits = 8 * sizes_of["codes"] / max(math.prod(layer.codes), 1)
        rows.append(
            [
                name or "(model)",
                "x".join(map(str, layer.shape)),
                layer.scheme,
                str(k),
                f"{bits:.2f}" if layer.coding else str(code_bits(k)),
                format_bytes(sum(sizes_of.values())) if name == stored else f"tied to {stored}",
            ]
        )
    header_row = ["layer", "shape", "scheme", "k", "bits/code", "size"]
    say(format_table(header_row, rows, right=(3, 4, 5)))
    total = Path(options.file).stat().st_size
    say(
        f"{len(rows)} codebook layers, {len(sizes)} tensors, {format_bytes(total)}, "
        f"format {FORMAT}, checksums right"
    )
    return WITHIN_BUDGET


def _doctor(options: argparse.Namespace) -> int:
    del options  # it has none
    module = ops.native()
    kinds = ("sub-vectors along the inputs", "single weights")
    fast = zip(kinds, module.has_fast() if module else (False, False), strict=True)
    rows = [
        ["vq_plugin", vq_plugin.__version__],
        ["python", platform.python_version()],
        ["torch", f"{torch.__version__}, {torch.get_num_threads()} threads"],
        ["cpu", f"{_processor()}, {platform.machine()}, {os.cpu_count()} cores"],
        ["VQ_PLUGIN_ISA", os.environ.get("VQ_PLUGIN_ISA", "not set")],
        ["kernels", f"{ops.isa()}, of {', '.join(ops.isas())}" if module else _why_no_kernels()],
        ["fast kernels", ", ".join(kind for kind, has in fast if has) or "none"],
    ]
    say("\n".join(f"{name:15}{value}" for name, value in rows))
    return WITHIN_BUDGET


def _why_no_kernels() -> str:
    if os.environ.get("VQ_PLUGIN_ISA") == "none":
        return "none: VQ_PLUGIN_ISA turns them off, layers run in pure torch"
    try:
        import_module("vq_plugin._native").register_operators()
    except ModuleNotFoundError:
        return (
            "none, they were not built: layers run in pure torch. Install a C++ compiler (for "
            "example g++), then vq_plugin again with pip install --force-reinstall --no-deps"
        )
    except ImportError as error:
        return f"none, they do not load: {error}"
    return "none, although they load now"


def _processor() -> str:
    information = Path("/proc/cpuinfo")
    lines = information.read_text(encoding="utf-8").splitlines() if information.exists() else []
    names = (line.partition(": ")[2] for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or "unknown")


if __name__ == "__main__":
    sys.exit(main())
