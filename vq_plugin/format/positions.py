"""A file that is read at positions, while others may replace it, or write over it."""

from __future__ import annotations

import os
import threading
import weakref

# Systems read at most 2 GiB at once.
_MOST = 1 << 30


class Positions:
    """The bytes of a file, read when they are asked for, by any thread or forked process.

    It is not mapped: where the file is cut, as by a copy over it, a map ends the process by a
    signal. A file that is replaced by another stays what it was.

    Attributes:
        size: Bytes of the file when it was opened.

    Example:
        >>> import tempfile
        >>> with tempfile.NamedTemporaryFile() as file:
        ...     _ = file.write(b"0123456789"), file.flush()
        ...     bytes(Positions(file.name).read(2, 5))
        b'234'
    """

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_BINARY", 0))
        weakref.finalize(self, os.close, self._descriptor)
        self._turn = threading.Lock()
        self.size = os.fstat(self._descriptor).st_size

    def read(self, start: int, stop: int) -> bytearray:
        """Bytes in memory of their own; ``ValueError`` where the file is shorter by now."""
        found = bytearray(stop - start)
        view, at = memoryview(found), 0
        while at < len(view):
            count = self._read_into(view[at : at + _MOST], start + at)
            if not count:
                raise ValueError("it became shorter while it was read: another program writes it")
            at += count
        return found

    def _read_into(self, view: memoryview, start: int) -> int:
        if hasattr(os, "preadv"):
            return os.preadv(self._descriptor, [view], start)
        with self._turn:
            os.lseek(self._descriptor, start, os.SEEK_SET)
            some = os.read(self._descriptor, len(view))
        view[: len(some)] = some
        return len(some)
