"""The functions that a recipe or a command line names."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from typing import Any


def resolve(reference: str) -> Callable[..., Any]:
    """The function that ``"module:function"`` names; modules beside the caller are found too.

    ValueError if there is no such module or function, or the module cannot be imported.

    Example:
        >>> resolve("math:sqrt")(9.0)
        3.0
    """
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        raise ValueError(f"{reference!r}: {error}") from error
    except Exception as error:
        raise ValueError(f"{reference!r}: the import {raised(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{reference!r}: module {module_name!r} has no function {name!r}{hint}")
    return function  # type: ignore[no-any-return]


def raised(error: Exception) -> str:
    """What a function of the user raised, and where, in one line."""
    frame = traceback.extract_tb(error.__traceback__)[-1]
    place = f"{os.path.basename(frame.filename)}:{frame.lineno}"
    text = " ".join(str(error).split())
    return f"raised {type(error).__name__} at {place}: {text}"
