"""Layers whose weight is also read by others, and is wanted there, whatever runs from codes."""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from vq_plugin.calibration.run import every_module_runs
from vq_plugin.export.example import Example, arguments_of
from vq_plugin.nn import CodebookLayer


def read_by_others(model: nn.Module, names: Iterable[str], example: Example) -> set[str]:
    """Of codebook layers, those whose ``weight`` a model reads beside, or without, calling them.

    Attention reads that of its output projection, a tied head that of its embedding. No layer reads
    its own by that name.

    Args:
        model: In eval mode; it is as it was after the call.
        names: Of codebook layers.
        example: As for :func:`vq_plugin.export.example.exported`, which has the error for one that
            the model does not take.

    Example:
        >>> import vq_plugin as vq
        >>> attention = nn.MultiheadAttention(8, 2)
        >>> small = vq.compress(attention, vq.KM(k=4)).eval()
        >>> inputs = (torch.zeros(2, 1, 8),) * 3
        >>> read_by_others(small, ["out_proj"], inputs)
        {'out_proj'}
    """
    read: set[str] = set()
    positional, keywords = arguments_of(example)
    layers = {name: model.get_submodule(name) for name in names}
    with (
        _told(layers, read),
        every_module_runs(),
        torch.no_grad(),
        warnings.catch_warnings(),
    ):
        warnings.simplefilter("ignore")
        try:
            model(*positional, **keywords)
        except Exception:  # noqa: BLE001 - what runs next says why, in more words
            return set()
    return read


@contextmanager
def _told(layers: dict[str, nn.Module], read: set[str]) -> Iterator[None]:
    """Adds the names of layers whose weight is read inside the block."""
    before = {layer: layer.__class__ for layer in layers.values()}
    for name, layer in layers.items():
        if isinstance(layer, CodebookLayer):
            layer.__class__ = _telling(type(layer), name, read)
    try:
        yield
    finally:
        for layer, own in before.items():
            layer.__class__ = own


def _telling(own: type[CodebookLayer], name: str, read: set[str]) -> Any:
    def weight(layer: CodebookLayer) -> Tensor:
        read.add(name)
        value = own.weight.__get__(layer)
        assert isinstance(value, Tensor)
        return value

    return type(own.__name__, (own,), {"weight": property(weight)})
