"""Gradients of a linear layer on codes, strip after strip of its weight."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from vq_plugin.ops.gradients import added_natively, codebook_gradients
from vq_plugin.ops.packing import LANES, NIBBLES
from vq_plugin.ops.rounding import rounded

# Values of a strip: of two of them no more than a cache holds, and memory is used again. Sums by
# center take about as long as their codebook has values, hence no strip is much smaller than that.
_STRIP = 1 << 19
_OF_CODEBOOKS = 2


def linear_gradients(
    grad: Tensor,
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    *,
    along_out: bool,
    group: int,
    codebook_dtype: torch.dtype,
    wants_input: bool,
    wants_tables: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Those of the input, the codebooks and the scale; ``None`` for what is not wanted.

    Neither the decoded weight nor its gradient is in memory as a whole, unless torch has to see how
    they are made. Strips do not depend on the number of threads.

    Args:
        grad: ``(samples, out)``.
        input: ``(samples, in)``.
        codes: As for :func:`vq_plugin.ops.codebook_linear`.
        codebooks: ``(stages, groups, books, k, dim)``.
        scale: ``(rows,)``, or ``None``.
        along_out: Whether sub-vectors run along the outputs; rows are then the inputs.
        group: Rows per codebook group, or 0.
        codebook_dtype: What codebooks and scale are rounded to before they are used.
        wants_input: Whether the gradient of the input is asked for.
        wants_tables: Whether those of codebooks and scale are.
    """
    if scale is not None:
        # Both are factors of each other's gradients; what is rounded stays as it is below.
        codebooks, scale = rounded(codebooks, codebook_dtype), rounded(scale, codebook_dtype)
    (rows, length) = (input, grad) if along_out else (grad, input)
    values = rows.shape[1] * length.shape[1]
    if added_natively(grad, codes, codebooks.shape[3]):
        own_books = codebooks.shape[2] > 1 and not along_out and not group
        if own_books and min(values, _OF_CODEBOOKS * codebooks.numel()) > _STRIP:
            return _by_subspaces(
                grad, input, codes, codebooks, scale, codebook_dtype, wants_input, wants_tables
            )
        values = max(_STRIP, _OF_CODEBOOKS * codebooks.numel())
    inputs: list[Tensor] = []
    tables: list[Tensor] = []
    scales: list[Tensor] = []
    for first, last in _strips(rows.shape[1], length.shape[1], group, values):
        some = _codes_of_rows(codes, first, last, along_out)
        books = codebooks[:, first // group : -(-last // group)] if group else codebooks
        own = None if scale is None else scale[first:last]
        strip = rows[:, first:last]
        if wants_input:
            shape = [grad.shape[1], last - first] if along_out else [last - first, input.shape[1]]
            weight = torch.ops.vq.dequantize_codebook(
                some, books, own, shape, along_out, group, codebook_dtype
            )
            if along_out or not inputs:
                inputs.append((grad if along_out else strip) @ weight)
            else:
                inputs[0].addmm_(strip, weight)
            del weight  # its memory is that of the gradient
        if wants_tables:
            # Sub-vectors, whichever way they run, in one piece each.
            found, of_scale = codebook_gradients(
                strip.T @ length, some, books, own, along_out=along_out, group=group
            )
            if group or not tables:
                tables.append(found)
            else:
                tables[0].add_(found)
            scales.extend(() if of_scale is None else (of_scale,))
    return _joined(inputs, 1), _joined(tables, 1), _joined(scales, 0)


def _by_subspaces(
    grad: Tensor,
    input: Tensor,
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    codebook_dtype: torch.dtype,
    wants_input: bool,
    wants_tables: bool,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The same in strips of subspaces that have codebooks of their own: none is added up twice."""
    out, dim = grad.shape[1], codebooks.shape[4]
    at_once = max(_STRIP // (out * dim) // NIBBLES, 1) * NIBBLES
    inputs: list[Tensor] = []
    tables: list[Tensor] = []
    scales: list[Tensor] = []
    for first in range(0, codebooks.shape[2], at_once):
        columns = input[:, first * dim : (first + at_once) * dim]
        some = _codes_of_subspaces(codes, first, first + at_once)
        books = codebooks[:, :, first : first + at_once]
        if wants_input:
            shape = [out, columns.shape[1]]
            weight = torch.ops.vq.dequantize_codebook(
                some, books, scale, shape, False, 0, codebook_dtype
            )
            inputs.append(grad @ weight)
            del weight  # its memory is that of the gradient
        if wants_tables:
            found, of_scale = codebook_gradients(grad.T @ columns, some, books, scale)
            tables.append(found)
            scales.extend(() if of_scale is None else (of_scale,))
    added = torch.stack(scales).sum(0) if scales else None
    return _joined(inputs, 1), _joined(tables, 2), added


def _codes_of_subspaces(codes: Tensor, first: int, last: int) -> Tensor:
    if codes.dim() != 4:
        return codes[:, :, first:last].contiguous()
    return codes[:, :, first // NIBBLES : -(-last // NIBBLES)].contiguous()


def _strips(rows: int, length: int, group: int, values: int) -> Iterator[tuple[int, int]]:
    """First and last rows of strips of about so many values: whole blocks of codes, and groups."""
    if rows * length <= values:
        yield 0, rows
        return
    step = math.lcm(LANES, group or 1)
    height = max(values // length // step, 1) * step
    for first in range(0, rows, height):
        yield first, min(first + height, rows)


def _codes_of_rows(codes: Tensor, first: int, last: int, along_out: bool) -> Tensor:
    if codes.dim() != 4:
        return codes[:, first:last].contiguous()
    blocks = slice(first // LANES, -(-last // LANES))
    return (codes[:, :, blocks] if along_out else codes[:, blocks]).contiguous()


def _joined(parts: list[Tensor], dim: int) -> Tensor | None:
    if not parts:
        return None
    return parts[0] if len(parts) == 1 else torch.cat(parts, dim)
