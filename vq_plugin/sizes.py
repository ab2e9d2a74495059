"""Every count of bytes: of a weight, a model and a setting, in float32 and in a file.

What the packed codes and the tables of one weight take follows from its scheme and its shape:
:class:`vq_plugin.schemes.Geometry` says that.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import NamedTuple, Protocol

from torch import Tensor, nn

from vq_plugin.checkpoint import Rest, kept_rest, stored_rest
from vq_plugin.codebook import CodebookWeight
from vq_plugin.coding.entropy import coded_size
from vq_plugin.factorize import factorized_away
from vq_plugin.factorize.coded import FactoredWeight
from vq_plugin.format.bounds import may_be_coded
from vq_plugin.nn import coded_weights
from vq_plugin.rounding import stored_scales
from vq_plugin.schemes import Scheme
from vq_plugin.select import slots_by_name
from vq_plugin.ties import tied_weights


class Counted(Protocol):
    """A way to store a weight whose bytes are known."""

    @property
    def nbytes(self) -> int:
        """Its bytes."""


class Account(NamedTuple):
    """The bytes of a model that no setting changes.

    Attributes:
        other_nbytes: What the search does not touch, in a file: biases, norms, other layers.
        float_nbytes: The whole float model in float32, integer tensors as they are; that from
            before, where it was factorized.
    """

    other_nbytes: int
    float_nbytes: int


def weight_float_nbytes(shape: Iterable[int]) -> int:
    """Bytes of a weight of this shape in float32."""
    return 4 * math.prod(shape)


def float_nbytes(tensors: Iterable[Tensor]) -> int:
    """Bytes of tensors in float32, integers as they are; one of several names counts once.

    Example:
        >>> import torch
        >>> half, steps = torch.zeros(3, dtype=torch.float16), torch.zeros(1, dtype=torch.int64)
        >>> float_nbytes([half, half, steps])
        20
    """
    return sum(
        weight_float_nbytes(value.shape) if value.is_floating_point() else value.nbytes
        for value in _distinct(tensors)
    )


def stored_nbytes(
    tensors: Iterable[Tensor], rest: Rest | None = None, model: nn.Module | None = None
) -> int:
    """Bytes in a file of tensors that are not coded; one of several names counts once.

    Args:
        tensors: Biases, norms, weights left in float.
        rest: How they are stored, as for :func:`vq_plugin.save`.
        model: What they are of, where biases that are added may be in it.

    Example:
        >>> import torch
        >>> stored_nbytes([torch.zeros(3)]), stored_nbytes([torch.zeros(3)], "float16")
        (12, 6)
    """
    keep = partial(stored_rest, rest=rest) if model is None else kept_rest(model, rest)
    return sum(keep(value).tensor.nbytes for value in _distinct(tensors))


def file_nbytes(small: CodebookWeight | FactoredWeight) -> int:
    """Bytes of a weight in a file: codes, codebooks and scales, without its part of the header.

    Args:
        small: The weight, or the two that stand for one.

    Returns:
        Of the codes the smaller of packed and coded, see
        :func:`vq_plugin.coding.entropy.coded_size`, which says how exactly.

    Example:
        >>> import torch, vq_plugin as vq
        >>> weight = torch.randn(64, 64, generator=torch.Generator().manual_seed(0))
        >>> small = vq.quantize_weight(weight * (weight.abs() > 2), vq.KM(k=5, keep_zeros=True))
        >>> small.nbytes, file_nbytes(small) < small.nbytes / 5
        (1546, True)
    """
    if isinstance(small, FactoredWeight):
        return file_nbytes(small.first) + file_nbytes(small.second)
    size = _codes_nbytes(small) + small.geometry.table_bytes
    if small.scale is not None:
        size += stored_scales(small.scale).nbytes - small.scale.nbytes
    return size


def _codes_nbytes(small: CodebookWeight) -> int:
    codes, geometry = small.codes, small.geometry
    if may_be_coded(codes.numel(), math.prod(small.shape)):
        return coded_size(codes.detach().cpu().numpy(), small.k)
    return geometry.nbytes - geometry.table_bytes


def codes_nbytes(model: nn.Module) -> int:
    """Bytes of all codes of a compressed model in a file; tied ones count once."""
    codes = {id(each.codebooks): each for each in coded_weights(model).values()}
    return sum(_codes_nbytes(each.codebook_weight) for each in codes.values())


def account(model: nn.Module, searched: Iterable[str], rest: Rest | None) -> Account:
    """Bytes of a model whose slots ``searched`` get schemes; shared tensors count once."""
    state = model.state_dict(keep_vars=True).values()
    tensors = [value for value in state if isinstance(value, Tensor)]
    slots = slots_by_name(model, searched).values()
    changing = {id(value) for slot in slots for value in slot.tensors}
    others = (value for value in tensors if id(value) not in changing)
    whole = float_nbytes(tensors) + weight_float_nbytes([factorized_away(model)])
    return Account(stored_nbytes(others, rest, model), whole)


def setting_nbytes(layers: Sequence[Sequence[Counted]], setting: Sequence[int]) -> int:
    """Bytes of the weights of a setting: the index, layer by layer, of one way to store it."""
    return sum(layer[choice].nbytes for layer, choice in zip(layers, setting, strict=True))


def saved_nbytes(model: nn.Module, schemes: Mapping[str, Scheme]) -> int:
    """Bytes that schemes save, by names of slots and before any fit; shared weights count once."""
    slots, ties = slots_by_name(model, schemes), tied_weights(model, schemes)
    return sum(
        slots[name].value.nbytes - scheme.geometry(slots[name].view.shape).nbytes
        for name, scheme in schemes.items()
        if name not in ties
    )


def _distinct(tensors: Iterable[Tensor]) -> Iterable[Tensor]:
    return {id(value): value for value in tensors}.values()
