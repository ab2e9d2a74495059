"""How far work is: a bar on a terminal, lines of the log elsewhere."""

from __future__ import annotations

import io
import logging
import sys
from collections.abc import Iterable
from typing import Any, TypeVar

from tqdm import tqdm

T = TypeVar("T")

# Seconds between two lines of the log, and before the first.
_PAUSE = 10.0
_log = logging.getLogger("vq_plugin")


def bar(items: Iterable[T] | None = None, **settings: Any) -> tqdm[T]:
    """A bar of tqdm on a terminal; none elsewhere, and none where stderr is closed or missing.

    A level of the logger ``vq_plugin`` above ``INFO`` turns bars off, too.

    Args:
        items: What is gone through, if the bar is to move by itself.
        settings: Those of tqdm.

    Example:
        >>> list(bar([1, 2], desc="count"))
        [1, 2]
    """
    return tqdm(items, disable=not _is_terminal() or _log.level > logging.INFO, **settings)


def progress(items: Iterable[T] | None = None, **settings: Any) -> tqdm[T]:
    """As :func:`bar`; where there is no terminal, a line of the log every ten seconds.

    Args:
        items: What is gone through, if the count is to move by itself.
        settings: Those of tqdm.

    Example:
        >>> list(progress([1, 2], desc="count"))
        [1, 2]
    """
    if _is_terminal() or not _log.isEnabledFor(logging.INFO):
        return bar(items, **settings)
    return _Lines(items, **settings)


def _is_terminal() -> bool:
    stream = sys.stderr
    return stream is not None and not getattr(stream, "closed", False) and stream.isatty()


class _Lines(tqdm):  # type: ignore[misc]
    """A bar that writes lines to the log."""

    def __init__(self, items: Iterable[Any] | None = None, **settings: Any) -> None:
        # What tqdm would write itself goes nowhere.
        pace = {"delay": _PAUSE, "mininterval": _PAUSE, "miniters": 1}
        super().__init__(items, **{**settings, **pace, "leave": False, "file": io.StringIO()})

    def display(self, msg: str | None = None, pos: int | None = None) -> bool:
        """Writes a line; tqdm asks for an empty one at the end."""
        del pos
        if msg != "":
            count, left = f"{self.n}", ""
            if self.total and self.n:
                seconds = self.format_dict["elapsed"] * (self.total - self.n) / self.n
                count = f"{self.n} of {self.total}"
                left = f", {self.format_interval(seconds)} left"
            plural = "es" if self.unit.endswith("ch") else "s"
            title = f"{self.desc.removesuffix(': ')}: " if self.desc else ""
            _log.info("%s%s %s%s%s", title, count, self.unit, plural, left)
        return True
