"""Which releases of torchao serve, and the one place that knows what is private in them."""

from __future__ import annotations

import re

try:
    import torchao
except ImportError as error:
    raise ImportError(
        f"vq_plugin.torchao needs torchao ({error}): pip install 'vq-plugin[torchao]'"
    ) from error

OLDEST = (0, 18)


def check_version(version: str) -> None:
    """Raises ``ImportError`` for a release that is too old.

    Example:
        >>> check_version("0.18.0+cpu")
    """
    numbers = tuple(int(part) for part in re.findall(r"\d+", version)[:2])
    if numbers < OLDEST:
        oldest = ".".join(map(str, OLDEST))
        raise ImportError(
            f"vq_plugin.torchao needs torchao {oldest} or later, got {version}: "
            f"pip install 'torchao>={oldest}'"
        )


check_version(torchao.__version__)

# X86InductorQuantizer takes every annotation that it meets for one of its own, and fails on others.
from torchao.quantization.pt2e.quantizer.x86_inductor_quantizer import (  # noqa: E402
    _X86InductorQuantizationAnnotation as Annotation,
)

__all__ = ["OLDEST", "Annotation", "check_version"]
