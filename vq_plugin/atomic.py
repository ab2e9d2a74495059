"""Files that other processes see whole or not at all."""

import os
import tempfile
from pathlib import Path


def write_atomically(path: Path, data: bytes) -> None:
    """Writes a file, or replaces one, in one step.

    A reader, and whoever comes after a kill, finds the old bytes or the new ones. What a power cut
    leaves is up to the file system. The folder has to exist.

    Raises:
        OSError: If the file cannot be written; an older one is then as it was.

    Example:
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_atomically(Path(folder) / "codes", b"0123")
        ...     (Path(folder) / "codes").read_bytes()
        b'0123'
    """
    # Beside the target, as os.replace is atomic only within one file system; in a folder, as the
    # files that tempfile makes itself can be read by their owner alone.
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".vq_plugin.") as folder:
        fresh = Path(folder) / path.name
        fresh.write_bytes(data)
        os.replace(fresh, path)
