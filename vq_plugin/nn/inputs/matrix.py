"""Inputs of matrix products."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn

Arguments: TypeAlias = Mapping[str, Any]

# Numbers in one piece: 64 MB.
PIECE = 1 << 24


class CallArguments(dict[str, Any]):
    """Arguments of one forward pass, and what was computed of them for all weights of the module.

    Attributes:
        computed: Filled and read by functions of this package, by a name of theirs.
    """

    def __init__(self, arguments: Arguments) -> None:
        super().__init__(arguments)
        self.computed: dict[str, Any] = {}


def call_arguments(
    host: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]
) -> CallArguments | None:
    """Arguments of a forward pass by name; ``None`` for an empty batch, which says nothing."""
    arguments = inspect.signature(host.forward).bind(*positional, **keywords).arguments
    value = next(iter(arguments.values()), None)
    if isinstance(value, Tensor) and value.numel() == 0:
        return None
    return CallArguments(arguments)


def first_argument(arguments: Arguments) -> Tensor:
    """The input of a module that takes one, whatever its name."""
    value = next(iter(arguments.values()))
    assert isinstance(value, Tensor)
    return value


def multiplied(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """The input itself: of Linear, recurrent cells, and other products along its last dimension."""
    del module, parameter
    value = first_argument(arguments)
    yield value.reshape(1, -1, value.shape[-1])


def paired(module: nn.Module, arguments: Arguments, parameter: str) -> Iterator[Tensor]:
    """Products of all pairs of two inputs: of Bilinear."""
    del module, parameter
    return products_of_pairs(*arguments.values())


def products_of_pairs(one: Tensor, two: Tensor) -> Iterator[Tensor]:
    """Products of all pairs of the last dimensions of two tensors, ``(1, samples, pairs)``."""
    one, two = (value.reshape(-1, value.shape[-1]).float() for value in (one, two))
    step = max(1, PIECE // (one.shape[1] * two.shape[1]))
    for start in range(0, len(one), step):
        rows = slice(start, start + step)
        yield torch.einsum("ni,nj->nij", one[rows], two[rows]).flatten(1).unsqueeze(0)
