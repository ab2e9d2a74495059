"""Packages that only some targets need."""

from __future__ import annotations

from importlib.util import find_spec


def require(*packages: str, extra: str) -> None:
    """``ImportError`` that says what to install, if one of the packages is missing.

    Example:
        >>> require("no_such_package", extra="onnx")
        Traceback (most recent call last):
        ImportError: no_such_package is not installed: pip install 'vq-plugin[onnx]'
    """
    missing = [package for package in packages if find_spec(package) is None]
    if missing:
        verb = "is" if len(missing) == 1 else "are"
        raise ImportError(
            f"{', '.join(missing)} {verb} not installed: pip install 'vq-plugin[{extra}]'"
        )
