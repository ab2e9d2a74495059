"""Codes as an ANS stream: frequent codes take fewer bits than rare ones.

The file holds integers, of which the frequencies follow: no rounding is part of the format.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from vq_plugin.coding.ans import Reader, Writer
from vq_plugin.coding.bits import code_dtype, pack, packed_size, unpack
from vq_plugin.coding.classes import Classes, by_class
from vq_plugin.coding.counts import (
    LOGARITHMS,
    as_stored,
    from_stored,
    is_width,
    quantized_counts,
    width_of,
)
from vq_plugin.coding.plain import PRECISION

Along = Literal["layer", "stage", "row", "subspace", "previous", "class"]

# Widths of a stored count: few, since each is tried.
_WIDTHS = (4, 6, 8, 12, 16, *LOGARITHMS)
# What the header says of a coded layer takes about so many bytes.
_ENTRY = 48
# Codes are counted as 64-bit integers: so many at a time.
_RUN = 1 << 20
# Counts of lines of codes, over the codes.
_COUNTED = 2
# Counts of tables that are made frequencies at a time.
_TABLES = 1 << 16
# Columns that are made rows at a time: what fits into the cache.
_STRIP = 128


@dataclass(frozen=True)
class Coding:
    """How the codes of one layer were coded.

    Attributes:
        along: Which codes share a table: those of the whole layer, of a stage, of a row of a
            stage, of a subspace of a stage, or, in each stage but the first, those that follow the
            same code of the stage before, or those of a class of rows and a class of subspaces.
        bits: Bits of a count in the tables, 1 to 16; 20 to 22 where 4 to 6 bits are its logarithm.
    """

    along: Along
    bits: int


@dataclass(frozen=True)
class _Way:
    """Counts of the codes of every table, ``(tables, k)``; before them those of the classes."""

    along: Along
    counts: list[NDArray[np.int64]]
    classes: Classes | None = None

    def groups(self, array: NDArray[Any], k: int) -> list[NDArray[Any]]:
        """What every table counts."""
        if self.classes is not None:
            lines = [self.classes.of_rows, self.classes.of_subspaces]
            return [*lines, *self.classes.split(array)]
        if self.along != "previous":
            return list(_ordered(array, self.along))
        groups = [array[0].reshape(-1)]
        for before, codes in pairwise(array):
            order, ends = _by_code(before, k)
            groups += np.split(codes.reshape(-1)[order], ends)
        return groups

    def head(self) -> NDArray[np.uint8]:
        """What stands before the tables."""
        return np.array(() if self.classes is None else self.classes.numbers, np.uint8)

    def stored(self, bits: int) -> int:
        """Bytes before the stream."""
        values = sum(part.size for part in self.counts)
        return len(self.head()) + packed_size(values, 1 << width_of(bits))

    def entropy(self) -> int:
        """Whole bytes that the stream takes at least."""
        return sum(_entropy(part) for part in self.counts)


def encode(codes: NDArray[Any], k: int) -> tuple[Coding, NDArray[np.uint8]] | None:
    """Codes, ``(stages, rows, subspaces)``, by their frequencies; nothing where packing is smaller.

    Gives how they were coded, and uint8: the tables, then the stream.

    Example:
        >>> rare = (np.arange(4096) % 64 == 0).astype(np.uint8).reshape(1, 64, 64)
        >>> coding, data = encode(rare, 2)
        >>> coding, data.size, packed_size(4096, 2)
        (Coding(along='layer', bits=20), 65, 512)
        >>> bool((decode(data, coding, rare.shape, 2) == rare).all())
        True
        >>> encode(np.arange(16).reshape(1, 4, 4), 16)
    """
    codes = codes.astype(code_dtype(k), copy=False)
    limit = packed_size(codes.size, k) - _ENTRY
    best = _cheapest(codes, k, limit)
    if best is None:
        return None
    _, bits, way, tables = best
    each = [table for part in tables for table in part]
    writer = Writer()
    for table, values in zip(each[::-1], way.groups(codes, k)[::-1], strict=True):
        if len(values):
            writer.push(values, frequencies(table).astype(np.uint32))
    stream = writer.words().astype("<u4").view(np.uint8)
    counts = as_stored(np.concatenate(each), bits)
    data = np.concatenate([way.head(), pack(counts, 1 << width_of(bits)), stream])
    return (Coding(way.along, bits), data) if data.size < limit else None


def coded_size(codes: NDArray[Any], k: int) -> int:
    """Bytes of codes, ``(stages, rows, subspaces)``, in a file, without coding them.

    The file's bytes where codes are packed. Otherwise never less and hardly ever more than 16 bytes
    above: a long run of one code at the stream's end takes next to nothing.

    Example:
        >>> rare = (np.arange(4096) % 64 == 0).astype(np.uint8).reshape(1, 64, 64)
        >>> coded_size(rare, 2), encode(rare, 2)[1].size
        (68, 65)
    """
    packed = packed_size(codes.size, k)
    best = _cheapest(codes, k, packed - _ENTRY)
    return packed if best is None else best[0]


def decode(data: NDArray[np.uint8], coding: Coding, shape: tuple[int, ...], k: int) -> NDArray[Any]:
    """Undoes :func:`encode`; ``ValueError`` if there is no such stream.

    The caller makes sure that codes of this shape, ``(stages, rows, subspaces)``, are wanted: a
    short stream can stand for any number of them.
    """
    if not (is_width(coding.bits) and 0 < k < 1 << PRECISION - 1 and min(shape) > 0):
        raise ValueError(f"{coding} of {k} centers and shape {tuple(shape)} cannot be")
    stages, rows, subspaces = shape
    if data.dtype != np.uint8 or data.ndim != 1:
        raise ValueError(f"{data.shape} {data.dtype} is not a stream of bytes")
    numbers = data[:2].tolist() if coding.along == "class" else []
    if coding.along == "class" and (len(numbers) < 2 or min(numbers) < 2):
        raise ValueError(f"{numbers} are not the numbers of two kinds of classes")
    count = math.prod(numbers) if numbers else _tables(shape, coding.along, k)
    values = sum(numbers) + count * k
    width = width_of(coding.bits)
    size = len(numbers) + packed_size(values, 1 << width)
    if data.size < size:
        raise ValueError(f"{data.size} bytes cannot hold tables of {size} bytes")
    stored = from_stored(unpack(data[len(numbers) : size], values, 1 << width), coding.bits)
    tables = stored[sum(numbers) :].reshape(-1, k)
    stream = data[size:]
    if stream.size % 4:
        raise ValueError("the stream is not made of whole words")
    reader = Reader(np.frombuffer(stream.tobytes(), "<u4").astype(np.uint32))
    codes = np.empty(shape, code_dtype(k))
    if coding.along == "class":
        of_rows, of_subspaces = np.empty(stages * rows, np.uint8), np.empty(subspaces, np.uint8)
        _fill([of_rows], stored[None, : numbers[0]], reader)
        _fill([of_subspaces], stored[None, numbers[0] : sum(numbers)], reader)
        classes = Classes(of_rows, of_subspaces, (numbers[0], numbers[1]))
        groups = [np.empty(length, codes.dtype) for length in classes.sizes()]
        _fill(groups, tables, reader)
        codes = classes.join(groups, shape)
    elif coding.along == "previous":
        _fill(codes[:1].reshape(1, -1), tables[:1], reader)
        for stage in range(1, stages):
            order, ends = _by_code(codes[stage - 1], k)
            found = np.empty_like(codes[stage].reshape(-1))
            _fill(np.split(found, ends), tables[1 + (stage - 1) * k :], reader)
            codes[stage].reshape(-1)[order] = found
    else:
        ordered = codes.reshape(count, -1)
        _fill(ordered, tables, reader)
        if coding.along == "subspace":
            codes = _turned(ordered.reshape(stages, subspaces, rows))
    if not reader.finished:
        raise ValueError("the stream goes on after the last code")
    return codes


def _cheapest(
    array: NDArray[Any], k: int, limit: int
) -> tuple[int, int, _Way, list[NDArray[np.int64]]] | None:
    """Size, width, way and tables of the fewest bytes; ``None`` if none is below the limit."""
    best: tuple[int, int, _Way, list[NDArray[np.int64]]] | None = None
    for way in _ways(array, k, limit):
        entropy = way.entropy()
        for bits in _WIDTHS:
            stored = way.stored(bits)
            most = limit if best is None else best[0]
            # No table does better than the counts themselves.
            if stored + entropy >= most:
                continue
            tables = [quantized_counts(part, bits) for part in way.counts]
            size = stored + _stream_size(way.counts, tables)
            if size < most:
                best = size, bits, way, tables
    return best


def _fill(groups: Iterable[NDArray[Any]], tables: NDArray[np.int64], reader: Reader) -> None:
    """Decodes the codes of one table after those of another."""
    each = iter(groups)
    # Frequencies of many tables at a time: a file may have one for every two of its bits.
    step = max(1, _TABLES // tables.shape[1])
    for start in range(0, len(tables), step):
        part = tables[start : start + step]
        used: NDArray[np.bool_] = part.max(1, keepdims=True) > 0
        found = frequencies(np.where(used, part, 1)).astype(np.uint32)
        for table, known, group in zip(found, used, each, strict=False):
            if not len(group):
                continue
            if not known[0]:
                raise ValueError("a table has no count for its codes")
            reader.pop(group, table)


def frequencies(table: NDArray[np.int64]) -> NDArray[np.int64]:
    """What is made of stored counts, ``(..., k)``, not all 0: positive integers that sum to 2^24.

    Example:
        >>> frequencies(np.array([3, 1, 0])).tolist()
        [12582911, 4194304, 1]
    """
    k = table.shape[-1]
    total = (1 << PRECISION) - k
    shares = table * total // table.sum(-1, keepdims=True)
    first = table.argmax(-1)[..., None]
    rest = total - shares.sum(-1, keepdims=True)
    np.put_along_axis(shares, first, np.take_along_axis(shares, first, -1) + rest, -1)
    found: NDArray[np.int64] = shares + 1
    return found


def _tables(shape: tuple[int, ...], along: Along, k: int) -> int:
    stages, rows, subspaces = shape
    return {
        "layer": 1,
        "stage": stages,
        "row": stages * rows,
        "subspace": stages * subspaces,
        "previous": 1 + (stages - 1) * k,
    }[along]


def _by_code(codes: NDArray[Any], k: int) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
    """The order of positions by their code, and where those of each code but the last end."""
    flat = codes.reshape(-1)
    return flat.argsort(kind="stable"), np.bincount(flat, minlength=k).cumsum()[:-1]


def _ordered(array: NDArray[Any], along: Along) -> NDArray[Any]:
    """The codes of one table after those of another, ``(tables, codes)``."""
    stages, rows, subspaces = array.shape
    if along == "subspace":
        return _turned(array).reshape(stages * subspaces, rows)
    return array.reshape({"layer": 1, "stage": stages, "row": stages * rows}[along], -1)


def _turned(array: NDArray[Any]) -> NDArray[Any]:
    """Rows and columns of every stage in each other's place."""
    stages, rows, columns = array.shape
    turned = np.empty((stages, columns, rows), array.dtype)
    for first in range(0, columns, _STRIP):
        # A copy: lines that are a power of two apart drive each other out of the cache.
        strip = np.ascontiguousarray(array[:, :, first : first + _STRIP])
        turned[:, first : first + _STRIP] = strip.transpose(0, 2, 1)
    return turned


def _ways(array: NDArray[Any], k: int, limit: int) -> Iterator[_Way]:
    stages, rows, subspaces = array.shape
    if limit < 1:
        return
    # Tables of a quarter of the packed codes, at 4 bits a count, hardly ever pay and take memory.
    affordable = limit // (2 * k)
    # Counts of all rows, and of all subspaces, take no more memory than a few times the codes.
    by_row = rows > 1 and stages * rows * k <= _COUNTED * array.size
    by_subspace = subspaces > 1 and stages * subspaces * k <= _COUNTED * array.size
    counts = _counts(_ordered(array, "row" if by_row else "stage"), k)
    by_stage = counts.reshape(stages, -1, k).sum(1)
    yield _Way("layer", [by_stage.sum(0, keepdims=True)])
    if 1 < stages <= affordable:
        yield _Way("stage", [by_stage])
    if by_row and stages * rows <= affordable:
        yield _Way("row", [counts])
    if stages > 1 and 1 + (stages - 1) * k <= affordable:
        yield _Way("previous", [_counts_by_previous(array, k)])
    if not by_subspace:
        return
    across = _counts(_ordered(array, "subspace"), k)
    if stages * subspaces <= affordable:
        yield _Way("subspace", [across])
    if by_row and _differ(counts, across):
        ways = [
            _Way("class", [*classes.counts(), pairs], classes)
            for classes, pairs in by_class(array, counts, across, affordable)
        ]
        # All widths of the one that looks best at that of most layers.
        yield from sorted(ways, key=lambda way: way.stored(LOGARITHMS[1]) + way.entropy())[:1]


def _differ(by_row: NDArray[np.int64], by_subspace: NDArray[np.int64]) -> bool:
    """Whether rows and subspaces tell much about their codes: classes take time to find."""
    counts = by_row.sum(0, keepdims=True)
    whole = _entropy(counts)
    saved = 2 * whole - _entropy(by_row) - _entropy(by_subspace)
    # What tables of their own would save if codes were independent of them: half a nat each for
    # every code but one, but no more for a rare code than it is often there.
    by_chance = sum(
        len(tables) * (float(np.minimum(counts / len(tables), 1).sum()) - 1) / (16 * math.log(2))
        for tables in (by_row, by_subspace)
    )
    return bool(saved - by_chance > 0.02 * whole)


def _counts(ordered: NDArray[Any], k: int) -> NDArray[np.int64]:
    counts = np.zeros((len(ordered), k), np.int64)
    for i, values in enumerate(ordered):
        for start in range(0, len(values), _RUN):
            counts[i] += np.bincount(values[start : start + _RUN], minlength=k)
    return counts


def _counts_by_previous(array: NDArray[Any], k: int) -> NDArray[np.int64]:
    counts = [np.bincount(array[0].reshape(-1), minlength=k)[None]]
    for before, codes in pairwise(array.reshape(len(array), -1)):
        pairs = np.zeros(k * k, np.int64)
        for start in range(0, len(codes), _RUN):
            run = slice(start, start + _RUN)
            pairs += np.bincount(before[run].astype(np.int64) * k + codes[run], minlength=k * k)
        counts.append(pairs.reshape(k, k))
    return np.concatenate(counts)


def _entropy(counts: NDArray[np.int64]) -> int:
    """Whole bytes that the codes of these counts take at least."""
    used, totals = counts[counts > 0], counts.sum(1)
    totals = totals[totals > 0]
    bits = (totals * np.log2(totals)).sum() - (used * np.log2(used)).sum()
    return math.floor(float(bits) / 8)


def _stream_size(counts: list[NDArray[np.int64]], tables: list[NDArray[np.int64]]) -> int:
    """Bytes, but for a few; whole ones, so that equal sizes are equal on every machine."""
    bits = 0.0
    for part, table in zip(counts, tables, strict=True):
        used = part > 0
        found = frequencies(np.where(table.any(1, keepdims=True), table, 1))
        bits += float((part[used] * (PRECISION - np.log2(found[used]))).sum())
    return round(bits / 8) + 8
