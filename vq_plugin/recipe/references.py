"""The functions that a recipe or a command line names."""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import sys
from collections.abc import Callable
from typing import Any

from vq_plugin.raised import raised
from vq_plugin.recipe.fields import check_reference


def resolve(reference: str, arguments: int) -> Callable[..., Any]:
    """The function that ``"module:function"`` names; modules beside the caller are found too.

    ValueError if there is no such module or function, the module cannot be imported, or the
    function cannot be called with that many arguments.

    Example:
        >>> resolve("math:sqrt", 1)(9.0)
        3.0
    """
    check_reference(reference)
    module_name, _, name = reference.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        module = importlib.import_module(module_name)
    except ModuleNotFoundError as error:
        remedy = ""
        if module_name.endswith(".py") and error.name == module_name:
            remedy = f"; it is written '{module_name.removesuffix('.py')}:{name}'"
        elif error.name and module_name.split(".")[0] == error.name.split(".")[0]:
            remedy = f"; modules are found in {os.getcwd()} and among what is installed"
        raise ValueError(f"{reference!r}: {error}{remedy}") from error
    except Exception as error:
        raise ValueError(f"{reference!r}: the import {raised(error)}") from error
    function = getattr(module, name, None)
    if not callable(function):
        known = [key for key, value in vars(module).items() if callable(value)]
        near = difflib.get_close_matches(name, known, n=1)
        hint = f"; did you mean {near[0]!r}?" if near else ""
        raise ValueError(f"{reference!r}: module {module_name!r} has no function {name!r}{hint}")
    _check_arguments(reference, function, arguments)
    return function  # type: ignore[no-any-return]


def _check_arguments(reference: str, function: Callable[..., Any], count: int) -> None:
    try:
        signature = inspect.signature(function)
    except ValueError:  # of some that are written in C
        return
    try:
        signature.bind(*[None] * count)
    except TypeError as error:
        given = ("without arguments", "with the model alone")[count]
        raise ValueError(
            f"{reference!r} is called {given}, and that does not fit {signature}: {error}; write a "
            "function that calls it"
        ) from None


def call(reference: str, *arguments: object) -> Any:
    """What the function that ``"module:function"`` names returns; ValueError if it raises.

    Example:
        >>> call("math:sqrt", 9.0)
        3.0
    """
    function = resolve(reference, len(arguments))
    try:
        return function(*arguments)
    except Exception as error:
        raise ValueError(f"{reference!r} {raised(error)}") from error


def batches(reference: str) -> Any:
    """What the function that ``"module:function"`` names returns, which is to be batches.

    ValueError if it raises, or returns nothing or a single batch.

    Example:
        >>> batches("builtins:list")
        []
    """
    # What it imports takes a second, and functions alone are found without.
    from vq_plugin.calibration import check_batches

    found = call(reference)
    try:
        check_batches(found, f"what {reference!r} returns")
    except TypeError as error:
        raise ValueError(str(error)) from None
    return found
