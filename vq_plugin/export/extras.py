"""Packages that only some targets need."""

from __future__ import annotations

import io
import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec


def require(*packages: str, extra: str | None = None) -> None:
    """``ImportError`` that says what to install, if one of the packages is missing.

    ``extra`` is that of this package which brings them; without one they are installed themselves.

    Example:
        >>> require("no_such_package", extra="onnx")
        Traceback (most recent call last):
        ImportError: no_such_package is not installed: pip install 'vq-plugin[onnx]'
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        remedy = " ".join(missing) if extra is None else f"'vq-plugin[{extra}]'"
        raise ImportError(f"{', '.join(missing)} {verb} not installed: pip install {remedy}")


@contextmanager
def quiet() -> Iterator[None]:
    """Without bars of progress, and what coremltools says of versions and of macOS."""
    disabled = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings(), redirect_stderr(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(disabled)
