"""``vq-plugin completion``: what completes commands in a shell."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from functools import partial
from typing import Any

from vq_plugin.commands.command import WITHIN_BUDGET, add_command
from vq_plugin.console import say

_SHELLS = ("bash", "zsh", "tcsh")


def add_completion(commands: Any, parser: Callable[[], argparse.ArgumentParser]) -> None:
    """Adds ``completion`` to a parser's sub-commands; ``parser`` makes the whole parser."""
    add_command(
        commands,
        "completion",
        partial(_completion, parser),
        summary="print what completes commands in a shell",
        example="vq-plugin completion bash > ~/.local/share/bash-completion/completions/vq-plugin",
        loads=False,
    ).add_argument("shell", choices=_SHELLS)


def _completion(parser: Callable[[], argparse.ArgumentParser], options: argparse.Namespace) -> int:
    try:
        import shtab
    except ModuleNotFoundError:
        raise ValueError("shtab is not installed: pip install 'vq-plugin[completion]'") from None
    say(shtab.complete(parser(), options.shell))
    return WITHIN_BUDGET
