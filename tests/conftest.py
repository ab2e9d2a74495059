"""What the tests share: one Hypothesis profile, and the thread count given back."""

from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import settings

# The same examples on every run: a pipeline that fails must fail again.
settings.register_profile(
    "vq_plugin", deadline=None, derandomize=True, database=None, max_examples=40
)
settings.load_profile("vq_plugin")


@pytest.fixture
def set_threads() -> Iterator[Callable[[int], None]]:
    """Sets torch's thread count; the old one comes back after the test."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _fixed_random_state() -> Iterator[None]:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield
