"""``vq-plugin reader``: the reader of compressed files as one file to copy."""

from __future__ import annotations

import argparse
import io
import zipfile
from importlib.metadata import distribution
from pathlib import Path
from typing import Any

import vq_plugin
from vq_plugin.atomic import write_atomically
from vq_plugin.commands.command import WITHIN_BUDGET, add_command
from vq_plugin.console import say

# What vq_plugin.reader imports; none of it imports torch.
_PARTS = ("reader.py", "extension.py", "format/*.py", "coding/*.py")


def add_reader(commands: Any) -> None:
    """Adds ``reader`` to a parser's sub-commands."""
    add_command(
        commands,
        "reader",
        _reader,
        summary="write the reader of compressed files as one file to copy, which needs numpy alone",
        example="vq-plugin reader vq_reader.zip",
        loads=False,
    ).add_argument("output", metavar="FILE", help="file to write, on Python's path a package")


def _reader(options: argparse.Namespace) -> int:
    output = Path(options.output)
    data = _archive()
    write_atomically(output, data)
    say(
        f"{output}: {len(data)} bytes. Where it was copied to:\n"
        f"  import sys; sys.path.insert(0, {output.name!r})\n"
        "  from vq_plugin.reader import open_file"
    )
    return WITHIN_BUDGET


def _archive() -> bytes:
    """The package's modules that read files, as a zip that Python imports from."""
    about = distribution("vq-plugin")
    root = Path(vq_plugin.__file__).parent
    files = {"vq_plugin/__init__.py": f'"""The reader of vq_plugin {about.version}, alone."""\n'}
    # Who copies it has to have the licence, too.
    files["LICENSE"] = about.read_text("licenses/LICENSE") or ""
    for part in _PARTS:
        for path in sorted(root.glob(part)):
            files[f"vq_plugin/{path.relative_to(root).as_posix()}"] = path.read_text("utf-8")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in files.items():
            # Of one date, so that it is the same bytes every time.
            entry = zipfile.ZipInfo(name)
            entry.external_attr = 0o644 << 16
            archive.writestr(entry, text, zipfile.ZIP_DEFLATED)
    return buffer.getvalue()
