"""What both pipelines print: accuracy on the untouched split and bytes on disk."""

from pathlib import Path

from torch import nn

from integration.pipelines import file_bytes
from vq_plugin.workloads import digits


def folder_bytes(folder: str) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def report(before: nn.Module, after: nn.Module, nbytes: int) -> None:
    """Prints one line a model."""
    print(f"float: accuracy {digits.test(before):.4f}, {file_bytes(before)} bytes")
    print(f"tuned: accuracy {digits.test(after):.4f}, {nbytes} bytes")
