"""Layers that stay as they are although a pattern for many chose them."""

from __future__ import annotations

import warnings
from collections.abc import Mapping

from vq_plugin.nn.slots import shown


def warn_of_stayed(reasons: Mapping[str, str], stacklevel: int) -> None:
    """Says which layers stay, and why; ``stacklevel`` is that of the caller's own warning."""
    if reasons:
        lines = "".join(f"\n  {shown(name)}: {reason}" for name, reason in reasons.items())
        warnings.warn(f"layers stayed as they are:{lines}", stacklevel=stacklevel + 1)
