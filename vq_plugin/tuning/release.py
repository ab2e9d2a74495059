"""The results of a run in its folder: all new or all old, and the old ones are kept."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from vq_plugin.export.targets import TARGETS
from vq_plugin.tuning.result import MODEL_FILE, PAGE_FILE, REPORT_FILE

#: Folder of the results before, inside that of the run.
PREVIOUS: Final = "previous"

# Results that are being written, and those that are whole.
_WRITTEN, _WHOLE = "journal.results", "journal.whole"
# Core ML's is a folder.
_FILES = (MODEL_FILE, REPORT_FILE, PAGE_FILE, *(target.file for target in TARGETS.values()))


@contextmanager
def release(folder: Path) -> Iterator[Path]:
    """A folder for new results, which take the place of those in ``folder`` at the end.

    Nothing of ``folder`` changes before all of them are there. What was there, down to a model that
    has no successor, is then in its folder ``previous``.
    """
    complete(folder)
    written = folder / _WRITTEN
    _remove(written)
    written.mkdir()
    yield written
    old = [folder / name for name in _FILES if (folder / name).exists()]
    if old:
        (written / PREVIOUS).mkdir()
        for path in old:
            _copy(path, written / PREVIOUS / path.name)
    try:
        written.rename(folder / _WHOLE)
        complete(folder)
    except BaseException as error:
        if not isinstance(error, Exception):
            # A signal: nobody is to find a part of each until the next run.
            complete(folder)
        raise


def complete(folder: Path) -> None:
    """Puts whole results in place; again, where a kill has come between."""
    whole = folder / _WHOLE
    if not whole.exists():
        return
    if (whole / PREVIOUS).exists():
        _remove(folder / PREVIOUS)
        (whole / PREVIOUS).rename(folder / PREVIOUS)
    for name in _FILES:
        place, copy = folder / name, folder / f".{name}.new"
        _remove(copy)
        if (whole / name).exists():
            _link(whole / name, copy)
            if place.is_dir():
                # A folder is not replaced in one step; after a kill in between it is done again.
                _remove(place)
            os.replace(copy, place)
            # Two names of one file, as after a kill, both stay.
            _remove(copy)
        else:
            _remove(place)
    # A kill that comes while files are removed must not leave a part that looks whole.
    _remove(folder / _WRITTEN)
    whole.rename(folder / _WRITTEN)
    _remove(folder / _WRITTEN)


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target)
    else:
        shutil.copy2(source, target)


def _link(source: Path, target: Path) -> None:
    """One file by two names: a disk that is full by now has no room for another."""
    if source.is_dir():
        shutil.copytree(source, target, copy_function=_link_file)
    else:
        _link_file(source, target)


def _link_file(source: str | Path, target: str | Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        # Not every file system has links.
        shutil.copy2(source, target)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
