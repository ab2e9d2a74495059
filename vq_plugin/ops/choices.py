"""What is decided for the layers of one kind: whether codes pay, by the input."""

from __future__ import annotations

import math
from typing import Any, Self
from weakref import WeakValueDictionary

import torch

from vq_plugin.ops import costs
from vq_plugin.ops.native import follow_isa

_REMEMBERED = 4096  # decisions of one kind of layers


class Choices(dict[Any, bool]):
    """Whether codes pay in layers of one kind, by what tells their inputs apart.

    A look-up decides what was not asked for before; another instruction set, or other costs, make
    it forget. Layers of a kind share theirs.
    """

    def __init__(self, *kind: Any) -> None:
        """Of a ``kind`` as in :meth:`of`."""
        super().__init__()
        self._kind = kind

    @classmethod
    def of(cls, *kind: Any) -> Self:
        """What all layers of a kind share."""
        found = _known.setdefault((cls, *kind), cls(*kind))
        assert isinstance(found, cls)
        return found

    def __missing__(self, input: Any) -> bool:
        """Decides."""
        if len(self) >= _REMEMBERED:
            self.clear()
        pays = self[input] = self._decide(input)
        return pays

    def _decide(self, input: Any) -> bool:
        raise NotImplementedError

    def __reduce__(self) -> tuple[Any, ...]:
        """Copies share, too."""
        # By a function that has a name: cloudpickle takes class methods apart, and their module.
        return _shared, (type(self), *self._kind)


class LinearChoices(Choices):
    """Of linear layers, by the number of values of the input.

    A kind is: shape and precision as for :func:`vq_plugin.ops.costs.codes_pay`, values of the input
    that make one sample, decodings that the float layer takes.
    """

    def _decide(self, input: int) -> bool:
        shape, precision, length, decodes = self._kind
        return costs.codes_pay(input // max(length, 1), shape, precision, decodes=decodes)


class RecurrentChoices(Choices):
    """Of recurrent layers, by the numbers of steps and of sequences.

    A kind is: what a step takes beside its product, shapes of the coded weights that meet hidden
    states, of those that meet inputs, and whether no weight is kept: as for
    :func:`vq_plugin.ops.costs.recurrent_codes_pay`.
    """

    def _decide(self, input: tuple[int, int]) -> bool:
        *kind, decodes = self._kind
        return costs.recurrent_codes_pay(*input, *kind, decodes=decodes)


class ConvolutionChoices(Choices):
    """Of convolutions, by the shape of the input.

    A kind is: shape and precision as for :func:`vq_plugin.ops.costs.convolution_codes_pay`; of each
    dimension the padding less what a kernel covers, and the stride; whether no weight is kept.
    """

    def _decide(self, input: torch.Size) -> bool:
        shape, precision, reach, decodes = self._kind
        size = input[-len(reach) :]
        outputs = (max((n + r) // step + 1, 0) for n, (r, step) in zip(size, reach, strict=True))
        inputs, places = math.prod(size), math.prod(outputs)
        images = input[0] if len(input) > len(reach) + 1 else 1
        return (
            inputs > 0
            and places > 0
            and costs.convolution_codes_pay(
                images, inputs, places, shape, precision, decodes=decodes
            )
        )


def _shared(cls: type[Choices], *kind: Any) -> Choices:
    return cls.of(*kind)


_known: WeakValueDictionary[tuple[Any, ...], Choices] = WeakValueDictionary()


def _forget() -> None:
    for some in list(_known.values()):
        some.clear()


follow_isa.append(_forget)
