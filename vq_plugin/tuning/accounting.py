"""What a setting weighs in the whole model, and what the float model weighed."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from vq_plugin.checkpoint import Rest, stored_rest
from vq_plugin.select import slots_by_name
from vq_plugin.tuning.result import LayerLadder


class Account(NamedTuple):
    """The bytes that no setting changes.

    Attributes:
        other_nbytes: What the search does not touch, in a file: biases, norms, other layers.
        float_nbytes: The whole float model in float32, integer tensors as they are.
    """

    other_nbytes: int
    float_nbytes: int


def account(model: nn.Module, layers: Sequence[LayerLadder], rest: Rest | None) -> Account:
    """Counts every tensor of the ``state_dict`` once, whatever names it has.

    Args:
        model: The float model.
        layers: The layers of the search.
        rest: How what is not coded is stored.

    Returns:
        The account.
    """
    state = {id(value): value for value in model.state_dict(keep_vars=True).values()}
    tensors = [value for value in state.values() if isinstance(value, Tensor)]
    slots = slots_by_name(model, [layer.name for layer in layers])
    searched = {id(value) for slot in slots.values() for value in slot.tensors}
    return Account(
        sum(stored_rest(value, rest).nbytes for value in tensors if id(value) not in searched),
        sum(4 * v.numel() if v.is_floating_point() else v.nbytes for v in tensors),
    )
