"""Which inputs meet a weight in a call of a torch function, such as ``functional.linear``."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch import Tensor
from torch.nn import functional

from vq_plugin.nn.inputs.convolution import (
    batched,
    convolution_patches,
    places,
    transposed_patches,
)
from vq_plugin.nn.inputs.matrix import products_of_pairs
from vq_plugin.nn.inputs.patches import Patches
from vq_plugin.nn.view import View, transposed_convolution

Piece: TypeAlias = Tensor | Patches


@dataclass(frozen=True)
class Call:
    """One use of a weight.

    Attributes:
        weight: What the function was given in the place of a weight.
        view: How ``weight`` is seen as ``(out, in, ...)``.
        inputs: Pieces of the inputs, ``(groups, samples, inputs)``.
        squares: Those for mean squares alone; ``None`` where they are the same.
        looked_up: Indices of rows that were looked up, where there are no inputs.
        bias: What was added to the product, if it was the function that did it.
        groups: Groups of inputs.
    """

    weight: Tensor
    view: View
    inputs: Callable[[], Iterator[Piece]] | None
    squares: Callable[[], Iterator[Piece]] | None = None
    looked_up: Tensor | None = None
    bias: Tensor | None = None
    groups: int = 1


def read_calls(
    function: Callable[..., Any], arguments: Sequence[Any], keywords: dict[str, Any]
) -> tuple[Call, ...]:
    """The uses that a call may make of a weight, none for functions that have none.

    Known are products (``linear``, ``matmul``, ``mm``, ``mv``, ``addmm``, ``bilinear``),
    convolutions, plain and transposed, and look-ups (``embedding``, ``embedding_bag``). Either
    matrix of a product may be the weight.

    Example:
        >>> x, weight = torch.ones(2, 3), torch.ones(4, 3)
        >>> (call,) = read_calls(functional.linear, (x, weight), {})
        >>> call.weight is weight, next(call.inputs()).shape
        (True, torch.Size([1, 2, 3]))
        >>> read_calls(torch.add, (x, x), {})
        ()
    """
    reader = _READERS.get(function)
    return () if reader is None else tuple(reader(*arguments, **keywords))


def _product(value: Tensor, weight: Tensor, view: View, bias: Tensor | None = None) -> Call:
    def inputs() -> Iterator[Tensor]:
        yield value.reshape(1, -1, value.shape[-1])

    return Call(weight, view, inputs, bias=bias)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Iterator[Call]:
    if weight.dim() == 2:
        yield _product(input, weight, View.whole(tuple(weight.shape)), bias)


def _matmul(left: Any, *rest: Any, **keywords: Any) -> Iterator[Call]:
    right = rest[0] if rest else next(iter(keywords.values()))
    if not isinstance(left, Tensor) or not isinstance(right, Tensor):
        return
    if right.dim() == 2:
        yield _product(left, right, View.ordered(tuple(right.shape), (1, 0)))
    if left.dim() == 2:
        columns = right.mT if right.dim() > 1 else right
        yield _product(columns, left, View.whole(tuple(left.shape)))


def _addmm(input: Tensor, *rest: Any, **keywords: Any) -> Iterator[Call]:
    if len(rest) != 2:
        return
    left, right = rest
    plain = keywords.get("beta", 1) == 1 and keywords.get("alpha", 1) == 1
    bias = input if plain and input.dim() == 1 else None
    yield _product(left, right, View.ordered(tuple(right.shape), (1, 0)), bias)


def _bilinear(
    input1: Tensor, input2: Tensor, weight: Tensor, bias: Tensor | None = None
) -> Iterator[Call]:
    def inputs() -> Iterator[Tensor]:
        return products_of_pairs(input1, input2)

    yield Call(weight, View.whole(tuple(weight.shape)), inputs, bias=bias)


def _convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | str | Sequence[int] = 0,
    dilation: int | Sequence[int] = 1,
    groups: int = 1,
) -> Iterator[Call]:
    dims = weight.dim() - 2
    value = batched(input, dims)

    def inputs() -> Iterator[Patches]:
        yield convolution_patches(
            value, weight.shape[2:], _each(stride, dims),
            padding if isinstance(padding, str) else _each(padding, dims),
            _each(dilation, dims), groups,
        )  # fmt: skip

    def squares() -> Iterator[Patches]:
        yield places(value, groups)

    view = View.whole(tuple(weight.shape))
    yield Call(weight, view, inputs, squares, bias=bias, groups=groups)


def _transposed_convolution(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: int | Sequence[int] = 1,
    padding: int | Sequence[int] = 0,
    output_padding: int | Sequence[int] = 0,
    groups: int = 1,
    dilation: int | Sequence[int] = 1,
) -> Iterator[Call]:
    dims = weight.dim() - 2

    def inputs() -> Iterator[Patches]:
        yield transposed_patches(
            batched(input, dims), weight.shape[2:], _each(stride, dims), _each(padding, dims),
            _each(output_padding, dims), groups, _each(dilation, dims),
        )  # fmt: skip

    view = transposed_convolution(weight, groups)
    yield Call(weight, view, inputs, bias=bias, groups=groups)


def _look_up(input: Tensor, weight: Tensor, *rest: Any, **keywords: Any) -> Iterator[Call]:
    del rest, keywords
    yield Call(weight, View.whole(tuple(weight.shape)), None, looked_up=input)


def _each(value: int | Sequence[int], dims: int) -> tuple[int, ...]:
    """One number for every dimension; one stands for all."""
    numbers = (value,) if isinstance(value, int) else tuple(value)
    return numbers * dims if len(numbers) == 1 else numbers


_READERS: dict[Callable[..., Any], Callable[..., Iterator[Call]]] = {
    functional.linear: _linear,
    torch.matmul: _matmul,
    torch.mm: _matmul,
    Tensor.matmul: _matmul,
    Tensor.mm: _matmul,
    torch.mv: _matmul,
    Tensor.mv: _matmul,
    Tensor.__matmul__: _matmul,
    torch.addmm: _addmm,
    Tensor.addmm: _addmm,
    torch.bilinear: _bilinear,
    torch.conv1d: _convolution,
    torch.conv2d: _convolution,
    torch.conv3d: _convolution,
    torch.conv_transpose1d: _transposed_convolution,
    torch.conv_transpose2d: _transposed_convolution,
    torch.conv_transpose3d: _transposed_convolution,
    functional.embedding: _look_up,
    functional.embedding_bag: _look_up,
}
