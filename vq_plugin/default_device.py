"""Torch's default device, put aside."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def cpu_by_default() -> Iterator[None]:
    """New tensors are made on the CPU inside, whatever ``torch.set_default_device`` says.

    For code that runs no module of the user, whose forward may count on that device.
    """
    if torch.get_default_device().type == "cpu":
        yield
    else:
        with torch.device("cpu"):
            yield
