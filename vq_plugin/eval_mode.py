"""Models that run in eval mode for a while."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def eval_mode(model: nn.Module) -> Iterator[None]:
    """Every module in eval mode inside the block, and as it was after it."""
    training = [module for module in model.modules() if module.training]
    try:
        # Not model.eval(): the graph modules of torch.export refuse it.
        for module in training:
            module.training = False
        yield
    finally:
        for module in training:
            module.training = True
