"""Files that other processes see whole or not at all."""

import ctypes
import errno
import os
import re
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from vq_plugin.swallowed import raise_swallowed


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, or replaces one, in one step.

    A reader, and whoever comes after a kill, finds the old bytes or the new ones. What a power cut
    leaves is up to the file system. The folder has to exist.

    A symbolic link stays one, and what it leads to is replaced. A file that is replaced keeps its
    mode; a new one gets that of the umask. Pipes and devices are written to as they are.

    Raises:
        OSError: If the file cannot be written, which it names; an older one is then as it was.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "codes", b"0123")
        ...     (Path(folder) / "codes").read_bytes()
        b'0123'
    """
    with naming(path):
        check_target(path)
        target = _leads_to(path)
        mode = stat.S_IMODE(target.stat().st_mode) if target.exists() else None
        if mode is not None and not target.is_file():
            target.write_bytes(data)
        else:
            _replace(target, data, mode)


def _leads_to(path: Path) -> Path:
    """What links lead to, which need not be there; a loop of them is an ``OSError``."""
    target = Path(os.path.realpath(path))
    if target.is_symlink():
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return target


def remove(path: Path) -> None:
    """Removes a file, if there is one; a link that leads to it stays, as when it is written."""
    with naming(path):
        _leads_to(path).unlink(missing_ok=True)


def check_target(path: Path) -> None:
    """Raises ``OSError`` if there can be no such file, before the work that makes its content."""
    if path.is_dir():
        raise IsADirectoryError(errno.EISDIR, "a folder, not a file to write", str(path))
    folder = _leads_to(path).parent
    if not folder.is_dir():
        raise FileNotFoundError(errno.ENOENT, "its folder does not exist", str(path))


def _replace(target: Path, data: bytes, mode: int | None) -> None:
    """Writes beside the target, as files are replaced in one step only within one file system."""
    descriptor, fresh = _beside(target)
    try:
        with open(descriptor, "wb") as file:
            if mode is not None:
                os.chmod(descriptor if fresh is None else fresh, mode)
            file.write(data)
            file.flush()
            if fresh is None:
                # It had no name so far: a kill would have left nothing.
                fresh = _free_name(target)
                # With a folder's descriptor, here of no use, Python follows the link in /proc.
                os.link(f"/proc/self/fd/{descriptor}", fresh, src_dir_fd=descriptor)
        raise_swallowed()
        os.replace(fresh, target)
    except BaseException:
        if fresh is not None:
            with suppress(FileNotFoundError):
                fresh.unlink()
        raise


def _beside(target: Path) -> tuple[int, Path | None]:
    """A new file in the folder of another one; without a name, where the system has such files."""
    nameless = getattr(os, "O_TMPFILE", 0)
    if nameless and os.path.isdir("/proc/self/fd"):
        with suppress(OSError):
            return os.open(target.parent, nameless | os.O_WRONLY, 0o666), None
    fresh = _free_name(target)
    return os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666), fresh


def _free_name(target: Path) -> Path:
    return target.with_name(f".vq_plugin.{os.getpid()}.{os.urandom(6).hex()}")


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Has errors name a file: those of a full disk name none, others that of a temporary one."""
    try:
        yield
    except shutil.Error as error:
        # Of a folder: a list with an entry, and a text, for each of its files.
        found = re.search(r"\[Errno (\d+)\]", str(error))
        number = int(found[1]) if found else errno.EIO
        raise OSError(number, os.strerror(number), str(path)) from error
    except OSError as error:
        if error.errno is None or error.filename == str(path):
            raise
        raise type(error)(error.errno, error.strerror, str(path)) from error


def replace_folder(fresh: Path, path: Path) -> None:
    """Puts a folder in the place of what is there, which is then beside it.

    On Linux and macOS in one step, where the file system has it. Elsewhere an error or a signal
    brings back what was there; a kill between the two steps leaves it beside.
    """
    raise_swallowed()
    if path.exists() and _swapped(fresh, path):
        return
    old = fresh.with_name("old")
    try:
        if path.exists():
            os.rename(path, old)
        os.rename(fresh, path)
    except BaseException:
        if old.exists() and not path.exists():
            os.rename(old, path)
        raise


def _swapped(one: Path, other: Path) -> bool:
    """Whether the system has exchanged two names in one step: Python has no function for it."""
    if os.name != "posix":
        return False
    library = ctypes.CDLL(None)
    first, second = (os.fsencode(path.absolute()) for path in (one, other))
    if hasattr(library, "renameat2"):  # Linux; 2 is RENAME_EXCHANGE, whole paths need no folder
        return bool(library.renameat2(-1, first, -1, second, 2) == 0)
    if hasattr(library, "renamex_np"):  # macOS; 2 is RENAME_SWAP
        return bool(library.renamex_np(first, second, 2) == 0)
    return False
