"""Random draws that repeat and leave the caller's generator alone."""

from collections.abc import Iterator
from contextlib import contextmanager

import torch


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seeds torch's CPU generator inside the block and gives the caller's state back after it."""
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would seed the accelerators as well, and nothing would restore those.
        torch.default_generator.manual_seed(int(seed))
        yield
