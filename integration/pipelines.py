"""What the pipelines of all hosts share: each is a script that prints accuracy and bytes."""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from pathlib import Path

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.nn import CodebookLayer


def run(module: str) -> dict[str, tuple[float, int]]:
    """Accuracy and bytes by model, from what a script prints.

    Args:
        module: The script, such as ``integration.torch_ao.float_to_int8``.
    """
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-m", module],
        cwd=Path(__file__).parents[1],
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    lines = re.findall(r"(\w+): accuracy ([\d.]+), (\d+) bytes", done.stdout)
    return {name: (float(accuracy), int(size)) for name, accuracy, size in lines}


def file_bytes(model: nn.Module) -> int:
    """Bytes on disk: ``vq.save`` where there are codebook layers, else ``torch.save``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if any(isinstance(module, CodebookLayer) for module in model.modules()):
            return vq.save(model, path)
        torch.save(model.state_dict(), path)
        return path.stat().st_size
