"""The compiled extension: coders, which need no torch, and the kernels of :mod:`vq_plugin.ops`."""

from __future__ import annotations

import importlib
import os
from functools import cache
from types import ModuleType

ISAS = ("avx512", "avx2", "neon", "scalar")
ISA_VARIABLE = "VQ_PLUGIN_ISA"


@cache
def extension() -> ModuleType | None:
    """The extension module; ``None`` where it was not built, or is turned off.

    Raises:
        ValueError: If the variable ``VQ_PLUGIN_ISA`` names no instruction set of this machine.
    """
    wanted = os.environ.get(ISA_VARIABLE)
    if wanted == "none":
        return None
    try:
        module = importlib.import_module("vq_plugin._native")
    except ImportError:
        return None
    if wanted is not None and not module.use_isa(wanted):
        there = ", ".join(name for name in ISAS if module.use_isa(name))
        raise ValueError(
            f"{ISA_VARIABLE}={wanted!r}: this machine has {there}; 'none' turns native kernels off"
        )
    return module
