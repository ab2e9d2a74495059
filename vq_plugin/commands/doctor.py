"""``vq-plugin doctor``: versions, this machine and its kernels."""

from __future__ import annotations

import argparse
import os
import platform
from importlib import import_module
from pathlib import Path
from typing import Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command, add_json, as_json
from vq_plugin.console import say


def add_doctor(commands: Any) -> None:
    """Adds ``doctor`` to a parser's sub-commands."""
    parser = add_command(
        commands,
        "doctor",
        _doctor,
        summary="show versions, this machine and its kernels",
        example="vq-plugin doctor",
    )
    add_json(parser)


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from vq_plugin import __version__, ops

    module = ops.native()
    kinds = ("sub-vectors along the inputs", "single weights")
    fast = zip(kinds, module.has_fast() if module else (False, False), strict=True)
    facts = {
        "vq_plugin": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "cpu": f"{_processor()}, {platform.machine()}, {os.cpu_count()} cores",
        "VQ_PLUGIN_ISA": os.environ.get("VQ_PLUGIN_ISA", "not set"),
        "kernels": f"{ops.isa()}, of {', '.join(ops.isas())}" if module else _why_no_kernels(),
        "fast kernels": ", ".join(kind for kind, has in fast if has) or "none",
    }
    lines = "\n".join(f"{name:15}{value}" for name, value in facts.items())
    say(as_json(facts) if options.json else lines)
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
