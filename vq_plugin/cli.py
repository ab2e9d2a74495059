"""The command line: what all commands share. Commands are in ``vq_plugin.commands``."""

from __future__ import annotations

import argparse
import logging
import sys
import traceback
from collections.abc import Callable, Sequence
from contextlib import nullcontext

from vq_plugin.commands.command import (
    BAD_INPUT,
    INTERRUPTED,
    NOT_REACHED,
    WITHIN_BUDGET,
    add_loudness,
)
from vq_plugin.commands.completion import add_completion
from vq_plugin.commands.compress import add_compress
from vq_plugin.commands.doctor import add_doctor
from vq_plugin.commands.export import add_export
from vq_plugin.commands.inspect import add_inspect
from vq_plugin.commands.layers import add_layers
from vq_plugin.commands.reader import add_reader
from vq_plugin.commands.recipe import add_recipe
from vq_plugin.commands.tune import add_tune
from vq_plugin.console import Terminated, complain, results_alone, shown_log, terminated_by_signal
from vq_plugin.raised import raised, users_line
from vq_plugin.version import __version__

__all__ = ["BAD_INPUT", "INTERRUPTED", "NOT_REACHED", "WITHIN_BUDGET", "main"]


_log = logging.getLogger(__name__)


def main(arguments: Sequence[str] | None = None, load: Callable[[], object] = lambda: None) -> int:
    """Runs the command line.

    Args:
        arguments: Words after the program's name; ``None`` takes the process's own.
        load: Imports what all commands but those that only say something about them need: torch,
            which takes seconds. It comes after the first line of progress.

    Returns:
        0 = done, within budget; 2 = bad input; 3 = budget not reached; 130, 143 and 129 = ended by
        Ctrl-C, by SIGTERM, and with its terminal. Output that nobody takes changes none of them.
    """
    parser = _parser()
    if not (sys.argv[1:] if arguments is None else arguments):
        complain(parser.format_help().rstrip())
        return BAD_INPUT
    options = parser.parse_args(arguments)
    level = logging.WARNING if options.quiet else logging.INFO
    with shown_log(logging.DEBUG if options.verbose else level):
        try:
            # No command but those with --json has the option.
            alone = results_alone() if getattr(options, "json", False) else nullcontext()
            with terminated_by_signal(), alone:
                if options.reads is not None:
                    _log.info("read %s", getattr(options, options.reads))
                if options.loads:
                    load()
                status: int = options.run(options)
        except KeyboardInterrupt as error:
            return _ended("interrupted", error, INTERRUPTED)
        except Terminated as error:
            return _ended("terminated", error, 128 + error.number)
        except SystemExit as error:
            # Exit code 0 of the user's code would pass for a verdict.
            complain(f"vq-plugin: the code of the recipe called sys.exit({error.code})")
            return BAD_INPUT
        except Exception as error:  # noqa: BLE001 - see _explained
            if options.verbose:
                complain("".join(traceback.format_exception(error)).rstrip())
            complain(f"vq-plugin: {_explained(error)}")
            return BAD_INPUT
    return status


def _explained(error: Exception) -> str:
    """What is wrong with the input; what is wrong with this package is raised again."""
    if isinstance(error, ModuleNotFoundError) and error.name == "torch":
        return "torch is not installed: pip install torch"
    if isinstance(error, ValueError | TypeError | OSError) or _is_of_tracking(error):
        return "; ".join([str(error), *getattr(error, "__notes__", [])])
    if users_line(error) is None:
        raise error
    return raised(error)


def _is_of_tracking(error: Exception) -> bool:
    from vq_plugin.tuning.tracking import TrackingError

    return isinstance(error, TrackingError)


def _ended(how: str, error: BaseException, code: int) -> int:
    complain("; ".join([f"vq-plugin: {how}", *getattr(error, "__notes__", [])]))
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="vq-plugin",
        description="Codebook compression of PyTorch models.",
        epilog="Exit codes: 0 = done, within budget; 2 = bad input; 3 = budget not reached.\n"
        "vq-plugin COMMAND --help has an example of each command.",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--version", action="version", version=f"vq-plugin {__version__}")
    add_loudness(parser, False)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    add_tune(commands)
    add_compress(commands)
    add_export(commands)
    add_layers(commands)
    add_inspect(commands)
    add_reader(commands)
    add_doctor(commands)
    add_recipe(commands)
    add_completion(commands, _parser)
    return parser


if __name__ == "__main__":
    sys.exit(main())
