"""What both pipelines print: accuracy on the untouched split and bytes on disk."""

import tempfile
from pathlib import Path

import torch
from torch import nn

from vq_plugin.workloads import digits


def folder_bytes(folder: str) -> int:
    """Bytes of all files in a folder."""
    return sum(path.stat().st_size for path in Path(folder).rglob("*") if path.is_file())


def report(before: nn.Module, after: nn.Module, nbytes: int) -> None:
    """Prints one line a model."""
    with tempfile.NamedTemporaryFile() as file:
        torch.save(before.state_dict(), file)
        file.flush()
        print(f"float: accuracy {digits.test(before):.4f}, {Path(file.name).stat().st_size} bytes")
    print(f"tuned: accuracy {digits.test(after):.4f}, {nbytes} bytes")
