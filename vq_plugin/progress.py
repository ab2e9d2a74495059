"""Progress bars, where there is somebody to see them."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T] | None = None, **settings: Any) -> tqdm[T]:
    """A bar of tqdm on a terminal; none elsewhere, and none where stderr is closed or missing.

    Args:
        items: What is gone through, if the bar is to move by itself.
        settings: Those of tqdm.

    Example:
        >>> list(progress([1, 2], desc="count"))
        [1, 2]
    """
    closed = sys.stderr is None or getattr(sys.stderr, "closed", False)
    return tqdm(items, disable=True if closed else None, **settings)
