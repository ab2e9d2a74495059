"""What is compiled: coders, which need no torch, and the kernels for torch and ONNX Runtime."""

from __future__ import annotations

import importlib
import os
from functools import cache
from importlib.util import find_spec
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


def onnxruntime_library() -> str:
    """Where the operator library for ONNX Runtime is, which runs layers from their codes.

    For files of ``vq.export_onnx(..., operator="native")``, in ONNX Runtime 1.18 or later on a CPU.
    The library needs neither torch nor Python: it may be copied to where programs in other
    languages load it by ``RegisterCustomOpsLibrary_V2``.

    Returns:
        A path, for ``onnxruntime.SessionOptions.register_custom_ops_library``.

    Raises:
        ImportError: If the package was built without it; the message says how to get it.

    Example:
        >>> import onnxruntime
        >>> options = onnxruntime.SessionOptions()
        >>> options.register_custom_ops_library(onnxruntime_library())
    """
    spec = find_spec("vq_plugin._onnxruntime")
    if spec is None or spec.origin is None:
        raise ImportError(
            "vq_plugin was built without its operator library for ONNX Runtime: reinstall with a "
            "C++ compiler present (for example g++). Without it the same files run in ONNX "
            "Runtime by their standard operators, from float weights"
        )
    return spec.origin
