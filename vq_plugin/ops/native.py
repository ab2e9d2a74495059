"""Whether there are native kernels, and which instruction set they use."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable
from functools import cache
from types import ModuleType

import torch  # noqa: F401 - the extension looks for the libtorch that this loads

from vq_plugin.extension import ISA_VARIABLE, ISAS, extension


@cache
def native() -> ModuleType | None:
    """The extension with its operators registered, or ``None``; ValueError for an unknown ISA."""
    module = extension()
    try:
        if module is not None:
            module.register_operators()
    except ImportError:  # torch is too old
        return None
    return module


@cache
def isa() -> str | None:
    """The instruction set in use: one of ``ISAS``, or ``None`` without native kernels."""
    module = native()
    return None if module is None else str(module.isa())


# What hangs on the instruction set, and is found anew for another one.
follow_isa: list[Callable[[], None]] = [isa.cache_clear]


def isas() -> list[str]:
    """The instruction sets of this machine that the native kernels know, the fastest first."""
    module = native()
    if module is None:
        return []
    now = module.isa()
    try:
        return [name for name in ISAS if module.use_isa(name)]
    finally:
        module.use_isa(now)


def use_isa(name: str) -> None:
    """Uses another instruction set from here on, in all threads.

    Raises:
        ValueError: If this machine lacks it.

    Example:
        >>> before = isa()
        >>> if before is not None:
        ...     use_isa("scalar")
        ...     assert isa() == "scalar"
        ...     use_isa(before)
    """
    module = native()
    if module is None or not module.use_isa(name):
        raise ValueError(f"no kernels for {name!r}; this machine has {', '.join(isas()) or 'none'}")
    for forget in follow_isa:
        forget()


@cache
def warn_without_native() -> None:
    """Warns, once, that layers run in pure torch."""
    if os.environ.get(ISA_VARIABLE) == "none":
        return
    warnings.warn(
        "vq_plugin has no native kernels here: layers keep their decoded weight in memory and run "
        "as float layers do. Reinstall with a C++ compiler present (for example g++) to get them, "
        f"or set {ISA_VARIABLE}=none to say that this is meant",
        stacklevel=2,
    )
