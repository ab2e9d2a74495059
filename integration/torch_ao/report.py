"""What both pipelines print: accuracy and the bytes of the file."""

from torch import nn

from integration.pipelines import file_bytes
from vq_plugin.workloads import digits


def report(before: nn.Module, after: nn.Module) -> None:
    """Prints one line a model."""
    for name, model in (("float", before), ("converted", after)):
        print(f"{name}: accuracy {digits.test(model):.4f}, {file_bytes(model)} bytes")
