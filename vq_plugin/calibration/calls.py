"""Statistics of weights whose inputs only the calls of torch functions show."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode

from vq_plugin.calibration.statistics import InputMoments
from vq_plugin.nn import Slot
from vq_plugin.nn.inputs import Call, read_calls

# Functions that give the same numbers again.
_COPIES = {
    Tensor.to, Tensor.type, Tensor.type_as, Tensor.float, Tensor.half, Tensor.bfloat16,
    Tensor.double, Tensor.cpu, Tensor.cuda, Tensor.contiguous, Tensor.clone, torch.clone,
}  # fmt: skip


class WeightCalls(TorchFunctionMode):
    """Gathers, while it is active, what torch functions multiply with the weights of slots.

    A weight is known by its memory, so that any module, or none, may use it: a ``forward`` of one's
    own, a function that is handed ``layer.weight``, another owner of a tied weight. The first call
    of a weight says how inputs meet it; calls of another form are passed over, and so are those
    that see the weight in another order than its slot.

    Attributes:
        moments: What was gathered, by the names of slots.
        read: Slots whose weights any function was given, to compute with.
    """

    def __init__(self, slots: Iterable[Slot], observed: Mapping[str, InputMoments]) -> None:
        """For ``slots``, but for those whose modules have been observed by the time of a call."""
        super().__init__()
        self.moments: dict[str, InputMoments] = {}
        self.read: set[Slot] = set()
        self._observed = observed
        self._copies: dict[str, Tensor] = {}
        self._slots: dict[int, list[Slot]] = defaultdict(list)
        for slot in slots:
            self._slots[slot.value.numel()].append(slot)

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Iterable[type],
        args: Sequence[Any] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        """Runs a function, and looks at what it was given."""
        del types
        keywords = kwargs or {}
        result = func(*args, **keywords)
        if func in _COPIES and result is not args[0]:
            for slot in self._wanted(args[0]):
                if self._is_weight(args[0], slot):
                    self._copies[slot.name] = result
            return result
        for call in read_calls(func, args, keywords):
            for slot in self._wanted(call.weight):
                self._gather(call, slot)
        if isinstance(result, Tensor):
            # Not of a look at a dtype or a device alone.
            self._note_read(args)
        return result

    def _wanted(self, weight: Tensor) -> list[Slot]:
        """The slots whose weight this may be."""
        return [
            slot
            for slot in self._slots.get(weight.numel(), ())
            if slot.name not in self._observed or self._observed[slot.name].count == 0
        ]

    def _note_read(self, values: Iterable[Any]) -> None:
        for value in values:
            if isinstance(value, Tensor):
                for slot in self._wanted(value):
                    if slot not in self.read and self._is_weight(value, slot):
                        self.read.add(slot)

    def _gather(self, call: Call, slot: Slot) -> None:
        if not self._is_weight(call.weight, slot, call):
            return
        if slot.name not in self.moments:
            self.moments[slot.name] = InputMoments(slot, call).to(slot.value.device)
        if self.moments[slot.name].takes(call):
            self.moments[slot.name].add_call(call)

    def _is_weight(self, weight: Tensor, slot: Slot, call: Call | None = None) -> bool:
        """Whether a tensor is the weight of a slot, and a call sees it as the slot does."""
        # As it is in this pass: `slot.value` would compute it anew.
        own = getattr(slot.module, slot.parameter)
        for value in (own, self._copies.get(slot.name)):
            if value is None or not _same_memory(weight, value):
                continue
            if call is None or (_same(weight, value) and call.view == slot.view):
                return True
            seen, expected = call.view.weight(weight), slot.view.weight(value)
            if _same(seen, expected):
                return True
        return False


def _same_memory(one: Tensor, other: Tensor) -> bool:
    return one is other or 0 != one.data_ptr() == other.data_ptr()


def _same(one: Tensor, other: Tensor) -> bool:
    same_layout = one.shape == other.shape and one.stride() == other.stride()
    return _same_memory(one, other) and same_layout
