"""``vq-plugin doctor``: versions, this machine and its kernels."""

from __future__ import annotations

import argparse
import os
import platform
from datetime import UTC, datetime
from importlib import import_module
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
        description=(
            "Shows versions, this machine and its kernels. --measure times kernels against float "
            "layers, on one thread and on all, for half a minute: from then on layers of this user "
            "run the faster way on this machine."
        ),
        example="vq-plugin doctor",
    )
    parser.add_argument(
        "--measure", action="store_true", help="time the kernels first, and keep what they cost"
    )
    add_json(parser)


def _doctor(options: argparse.Namespace) -> int:
    import torch

    from vq_plugin import __version__, ops
    from vq_plugin.ops.costs import processor

    module = ops.native()
    if options.measure:
        _measure()
    kinds = ("sub-vectors along the inputs", "single weights")
    fast = zip(kinds, module.has_fast() if module else (False, False), strict=True)
    facts = {
        "vq_plugin": __version__,
        "python": platform.python_version(),
        "torch": f"{torch.__version__}, {torch.get_num_threads()} threads",
        "cpu": f"{processor()}, {platform.machine()}, {os.cpu_count()} cores",
        "VQ_PLUGIN_ISA": os.environ.get("VQ_PLUGIN_ISA", "not set"),
        "kernels": f"{ops.isa()}, of {', '.join(ops.isas())}" if module else _why_no_kernels(),
        "fast kernels": ", ".join(kind for kind, has in fast if has) or "none",
        "costs": _costs(),
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


def _costs() -> str:
    """Which costs of kernels layers go by, and how old they are."""
    from vq_plugin import ops
    from vq_plugin.ops.costs import COSTS_VARIABLE, costs_of, costs_path

    isa = ops.isa()
    if isa is None:
        return "none: there are no kernels"
    costs = costs_of(isa)
    if costs.measured is not None:
        age = datetime.now(UTC) - datetime.fromisoformat(costs.measured)
        return f"measured here, {age.days} days old: {costs_path(isa)}"
    if os.environ.get(COSTS_VARIABLE):
        return f"shipped, as {COSTS_VARIABLE} says"
    return "shipped; vq-plugin doctor --measure finds those of this machine"


def _measure() -> None:
    import torch

    from vq_plugin import ops
    from vq_plugin.nn.measured import measure_costs
    from vq_plugin.ops.costs import COSTS_VARIABLE, keep_costs, place_for_costs

    isa = ops.isa()
    if isa is None:
        raise ValueError("there are no kernels to measure; vq-plugin doctor says why")
    if os.environ.get(COSTS_VARIABLE):
        raise ValueError(
            f"{COSTS_VARIABLE} says that layers go by shipped costs: unset it before measuring"
        )
    place_for_costs(isa)
    keep_costs(isa, measure_costs(sorted({1, torch.get_num_threads()})))
