"""What is remembered of a class is forgotten when a slot is registered."""

from collections.abc import Iterator

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.nn import find_slots, slots


class Scores(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.kernel = nn.Parameter(torch.randn(8, 4))


@pytest.fixture
def _restored() -> Iterator[None]:
    yield
    slots._KINDS.pop(Scores, None)
    slots._FOUND.clear()


@pytest.mark.usefixtures("_restored")
def test_a_slot_that_is_registered_late_is_found() -> None:
    model = nn.Sequential(Scores())
    assert not find_slots(model)
    vq.register_slot(Scores, "kernel", view=(1, 0))
    assert list(find_slots(model)) == ["0"]
