"""What the command line says and logs, and the signals that end it.

A pipe or terminal that is gone is no error of the work that was done: exit codes are verdicts.
"""

from __future__ import annotations

import logging
import os
import signal
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, redirect_stdout, suppress
from typing import TextIO

from tqdm import tqdm

from vq_plugin.swallowed import raise_swallowed, raised
from vq_plugin.table import printable


class Terminated(BaseException):
    """SIGTERM, or a terminal that is gone. It lets files be removed and workers be ended."""

    def __init__(self, number: int) -> None:
        self.number = number
        super().__init__(signal.Signals(number).name)


# What `say` prints to while all else that is printed goes to standard error.
_results: list[TextIO] = []


@contextmanager
def results_alone() -> Iterator[None]:
    """Keeps standard output for what :func:`say` prints: another program reads it.

    What the user's functions print, workers and other programs that they start included, goes to
    standard error.
    """
    output, errors = sys.stdout, sys.stderr
    if output is None or errors is None:
        yield
        return
    with ExitStack() as stack:
        try:
            descriptor, other = output.fileno(), errors.fileno()
        except (OSError, ValueError):
            # Of no file, as where a program captures it: others cannot print to it either.
            _results.append(output)
        else:
            output.flush()
            kept = os.dup(descriptor)
            _results.append(
                stack.enter_context(open(kept, "w", encoding=output.encoding, errors=output.errors))
            )
            os.dup2(other, descriptor)
            stack.callback(os.dup2, kept, descriptor)
            stack.callback(_flush, output)
        stack.callback(_results.pop)
        stack.enter_context(redirect_stdout(errors))
        yield


def _flush(stream: TextIO) -> None:
    with suppress(OSError, ValueError):
        stream.flush()


def say(text: str) -> None:
    """Prints to standard output, if anybody listens; what it cannot show is escaped."""
    stream = _results[-1] if _results else sys.stdout
    if stream is None:
        return
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), file=stream, flush=True)
    except BrokenPipeError:
        _close(stream)
    except (OSError, ValueError) as error:
        _close(stream)
        complain(f"vq-plugin: warning: standard output is lost: {error}")


def complain(text: str) -> None:
    """Prints to standard error, if there is one; control characters are escaped."""
    if sys.stderr is not None:
        lines = "\n".join(map(printable, text.split("\n")))
        with suppress(OSError, ValueError):
            print(lines, file=sys.stderr, flush=True)


class _Shown(logging.Handler):
    """Lines with the time on standard error, above a bar if there is one."""

    def emit(self, record: logging.LogRecord) -> None:
        """Writes a record."""
        at = time.strftime("%H:%M:%S", time.localtime(record.created))
        warned = "warning: " if record.levelno >= logging.WARNING else ""
        with tqdm.external_write_mode(file=sys.stderr):
            complain(f"{at} {warned}{record.getMessage()}")


@contextmanager
def shown_log(level: int) -> Iterator[None]:
    """Shows what the package logs from a level on; the logger is then as it was."""
    log = logging.getLogger("vq_plugin")
    before, handler = log.level, _Shown()
    log.addHandler(handler)
    log.setLevel(level)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)


def _close(stream: TextIO) -> None:
    """Sends what is still to be written nowhere: Python would fail on it when it ends."""
    with suppress(OSError, ValueError):
        nowhere = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nowhere, stream.fileno())
        os.close(nowhere)


@contextmanager
def terminated_by_signal() -> Iterator[None]:
    """Raises :class:`Terminated` at SIGTERM and SIGHUP; in the main thread, as Python has it.

    What is ignored stays so: ``nohup`` has commands outlive their terminal. What a signal raises,
    ``KeyboardInterrupt`` at SIGINT, leaves the block, whatever other code has made of it.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: object) -> None:
        # A second one does not wait for files and workers.
        signal.signal(number, signal.SIG_DFL)
        raised.append(KeyboardInterrupt() if number == signal.SIGINT else Terminated(number))
        raise raised[-1]

    ends = [signal.SIGINT, signal.SIGTERM]
    ends += [signal.SIGHUP] if hasattr(signal, "SIGHUP") else []
    before = {each: signal.getsignal(each) for each in ends}
    before = {each: way for each, way in before.items() if way not in (signal.SIG_IGN, None)}
    for each in before:
        signal.signal(each, end)
    try:
        yield
        raise_swallowed()
    except BaseException as error:
        if not raised or error is raised[0]:
            raise
        for note in getattr(error, "__notes__", []):
            raised[0].add_note(note)
        raise raised[0] from error
    finally:
        raised.clear()
        for each, way in before.items():
            signal.signal(each, way)
