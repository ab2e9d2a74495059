"""The calls of a model that calibration data make, in pieces, and the tensors that they return."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterable, Iterator, Mapping, MutableMapping
from operator import itemgetter
from typing import Any, Final, TypeAlias, TypeVar

from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils._pytree import tree_map

from vq_plugin.calibration.run import Calibration, run_calibration
from vq_plugin.eval_mode import as_it_was

# Samples of a batch that give one gradient: more gradients say more than more samples in each, and
# what a pass back needs is kept meanwhile.
SAMPLES: Final = 16

T = TypeVar("T")
#: The positional arguments of a call, and those by name.
Call: TypeAlias = tuple[tuple[Any, ...], dict[str, Any]]


def calls(model: nn.Module, calibration: Calibration) -> list[Call]:
    """What the model is called with."""
    found: list[Call] = []
    if isinstance(calibration, Iterable):
        for batch in calibration:
            match batch:
                case PackedSequence():
                    found.append(((batch,), {}))
                case Mapping():
                    found.append(((), dict(batch)))
                case tuple() | list():
                    found.append((tuple(batch), {}))
                case _:
                    found.append(((batch,), {}))
        return found

    def record(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        # The caller may use one buffer for all.
        found.append(mapped(_copied, (args, kwargs)))

    handle = model.register_forward_pre_hook(record, with_kwargs=True)
    try:
        with as_it_was(model):
            run_calibration(model, calibration)
    finally:
        handle.remove()
    return found


def pieces(batch: T, samples: int = SAMPLES) -> Iterator[list[T]]:
    """Some samples of a batch after others, each with the batch itself as the way out."""
    count = samples_of(batch)
    if count <= samples:
        yield [batch]
        return
    for start in range(0, count, samples):
        rows = slice(start, start + samples)
        yield [mapped(itemgetter(rows), batch), batch]


def samples_of(batch: object) -> int:
    """How many samples a batch seems to have: the length that all its tensors have, else 0."""
    tensors: list[Tensor] = []

    def look(tensor: Tensor) -> Tensor:
        tensors.append(tensor)
        return tensor

    mapped(look, batch)
    lengths = {len(each) if each.dim() else 0 for each in tensors}
    return max(lengths) if len(lengths) == 1 else 0


def mapped(function: Callable[[Tensor], Tensor], value: T) -> T:
    """The same with a function of each tensor in the place of it, however nested they are.

    Torch's trees end at mappings of other libraries, such as the ``BatchEncoding`` of transformers,
    and at dataclasses, which are copied here.

    Example:
        >>> from collections import UserDict
        >>> mapped(Tensor.tril, [UserDict(x=Tensor([[1, 2], [3, 4]]))])[0]["x"].tolist()
        [[1.0, 0.0], [3.0, 4.0]]
    """
    return tree_map(lambda leaf: _mapped(function, leaf), value)  # type: ignore[no-any-return]


def _mapped(function: Callable[[Tensor], Tensor], leaf: Any) -> Any:
    if isinstance(leaf, Tensor):
        return function(leaf)
    changed: Any
    if isinstance(leaf, MutableMapping):
        changed = copy.copy(leaf)
        for key, value in leaf.items():
            changed[key] = mapped(function, value)
        return changed
    if dataclasses.is_dataclass(leaf) and not isinstance(leaf, type):
        changed = copy.copy(leaf)
        for field in dataclasses.fields(leaf):
            # Past the refusal of those that are frozen.
            object.__setattr__(changed, field.name, mapped(function, getattr(leaf, field.name)))
        return changed
    return leaf


def _copied(value: Tensor) -> Tensor:
    return value.detach().clone()


def float_tensors(value: object) -> Iterator[Tensor]:
    """The float tensors in what a model returned: a tensor, or a collection, however nested."""
    if isinstance(value, Tensor):
        if value.is_floating_point():
            yield value
        return
    items: Iterable[object] = ()
    if isinstance(value, Mapping):
        items = value.values()
    elif dataclasses.is_dataclass(value) and not isinstance(value, type):
        items = (getattr(value, each.name) for each in dataclasses.fields(value))
    elif isinstance(value, list | tuple):
        items = value
    for item in items:
        yield from float_tensors(item)
