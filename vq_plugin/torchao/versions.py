"""Which releases of torch and torchao serve, and the place that knows what is private in them."""

from __future__ import annotations

import re

import torch

try:
    import torchao
except ImportError as error:
    raise ImportError(
        f"vq_plugin.torchao needs torchao ({error}): pip install 'vq-plugin[torchao]'"
    ) from error

OLDEST = {"torch": (2, 10), "torchao": (0, 18)}


def check_version(package: str, version: str) -> None:
    """Raises ``ImportError`` for a release that is too old.

    Example:
        >>> check_version("torchao", "0.18.0+cpu")
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST[package]:
        oldest = ".".join(map(str, OLDEST[package]))
        raise ImportError(
            f"vq_plugin.torchao needs {package} {oldest} or later, got {version}: "
            f"pip install '{package}>={oldest}'"
        )


check_version("torch", torch.__version__)
check_version("torchao", torchao.__version__)

try:
    # X86InductorQuantizer takes every annotation that it meets for one of its own, and fails on
    # others.
    from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (
        _X86InductorQuantizationAnnotation as Annotation,
    )
except ImportError as error:
    raise ImportError(
        f"vq_plugin.torchao works with torchao 0.18, and {torchao.__version__} lacks what it needs "
        f"({error}): pip install 'torchao==0.18.*'"
    ) from error

__all__ = ["OLDEST", "Annotation", "check_version"]
