"""Errors of functions that the user wrote: what they are and where."""

from __future__ import annotations

import os
import sysconfig
import traceback

from vq_plugin.table import printable

# Files of libraries, this one among them: their lines are of no help.
_LIBRARIES = (os.path.dirname(__file__), *(sysconfig.get_paths()[k] for k in ("stdlib", "purelib")))


def raised(error: BaseException) -> str:
    """What a function of the user raised, and where, in one line.

    Example:
        >>> raised(KeyError("images"))
        "raised KeyError: 'images'"
    """
    text = " ".join(str(error).split())
    lines = traceback.extract_tb(error.__traceback__)
    place = users_line(error)
    if isinstance(error, SyntaxError) and error.filename and error.lineno:
        # Of a file that never ran, so that no call is in it.
        place, text = f"{os.path.basename(error.filename)}:{error.lineno}", str(error.msg)
    elif place is None and lines:
        place = _shown(lines[-1])
    return printable(f"raised {type(error).__name__}{f' at {place}' if place else ''}: {text}")


def users_line(error: BaseException) -> str | None:
    """``file:line`` of the deepest call in the user's own files; ``None`` if there is none."""
    frames = reversed(traceback.extract_tb(error.__traceback__))
    return next((_shown(f) for f in frames if not f.filename.startswith(("<", *_LIBRARIES))), None)


def _shown(frame: traceback.FrameSummary) -> str:
    return f"{os.path.basename(frame.filename)}:{frame.lineno}"
