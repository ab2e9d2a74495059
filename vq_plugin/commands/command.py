"""What all commands have: an example, exit codes, and how much they say."""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Mapping
from typing import Any, Final

WITHIN_BUDGET, BAD_INPUT, NOT_REACHED = 0, 2, 3
# As shells have it: 128 and the number of the signal, as for others that end a command.
INTERRUPTED = 130
#: Exit codes of a command that has no verdict.
PLAIN: Final = {
    WITHIN_BUDGET: "done",
    BAD_INPUT: "bad input; the message says where and what to do",
}


def add_command(
    commands: Any,
    name: str,
    run: Callable[[argparse.Namespace], int],
    *,
    summary: str,
    example: str,
    description: str | None = None,
    codes: Mapping[int, str] = PLAIN,
    reads: str | None = None,
    loads: bool = True,
) -> argparse.ArgumentParser:
    """Adds a command to a parser's sub-commands.

    Args:
        commands: What ``add_subparsers`` gave.
        name: Name of the command.
        run: Runs it, and gives its exit code.
        summary: A line for the list of commands.
        example: A command line, shown below the options.
        description: Sentences above the options, if they are to say more than ``summary``.
        codes: What exit codes mean.
        reads: Argument whose value the first line of progress says to be read.
        loads: Whether the package is imported, and torch with it, before it runs.

    Returns:
        The command's parser, for its arguments.
    """
    lines = [f"  {code}  {meaning}" for code, meaning in codes.items()]
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=summary,
        description=description or f"{summary[0].upper()}{summary[1:]}.",
        epilog="\n".join(["example:", f"  {example}", "", "exit codes:", *lines]),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_loudness(parser, argparse.SUPPRESS)
    parser.set_defaults(run=run, reads=reads, loads=loads)
    return parser


def add_loudness(parser: argparse.ArgumentParser, default: object) -> None:
    """Adds ``-q`` and ``-v``, which stand before or after the command."""
    loudness = parser.add_mutually_exclusive_group()
    loudness.add_argument(
        *("-q", "--quiet"),
        action="store_true",
        default=default,
        help="no progress: results, warnings and errors alone",
    )
    loudness.add_argument(
        *("-v", "--verbose"),
        action="store_true",
        default=default,
        help="every fit, too, and where errors come from",
    )


def add_json(parser: argparse.ArgumentParser) -> None:
    """Adds ``--json``."""
    parser.add_argument("--json", action="store_true", help="print the result as JSON")


def as_json(value: object) -> str:
    """A result for other programs."""
    return json.dumps(value, indent=2, ensure_ascii=False)
