"""What both pipelines print: accuracy and the bytes of the file."""

import tempfile
from pathlib import Path

import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.nn import CodebookLayer
from vq_plugin.workloads import digits


def file_bytes(model: nn.Module) -> int:
    """Bytes on disk: ``vq.save`` where there are codebook layers, else ``torch.save``."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model"
        if any(isinstance(module, CodebookLayer) for module in model.modules()):
            return vq.save(model, path)
        torch.save(model.state_dict(), path)
        return path.stat().st_size


def report(before: nn.Module, after: nn.Module) -> None:
    """Prints one line a model."""
    for name, model in (("float", before), ("converted", after)):
        print(f"{name}: accuracy {digits.test(model):.4f}, {file_bytes(model)} bytes")
