"""The header of a file: what is needed to rebuild the weights, and checksums."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import NamedTuple, TypeAlias

from vq_plugin.coding.entropy import Coding

FORMAT = 1
# What the tensors of a coded weight are called, below its name.
LEAVES = ("codes", "codebooks", "exponents", "scale")
# What a dtype of a file is called in safetensors, and its bytes. The names are torch's.
DTYPES = {
    "bool": ("BOOL", 1),
    "uint8": ("U8", 1),
    "uint16": ("U16", 2),
    "uint32": ("U32", 4),
    "uint64": ("U64", 8),
    "int8": ("I8", 1),
    "int16": ("I16", 2),
    "int32": ("I32", 4),
    "int64": ("I64", 8),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float32": ("F32", 4),
    "float64": ("F64", 8),
    "complex64": ("C64", 8),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e4m3fnuz": ("F8_E4M3FNUZ", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "float8_e5m2fnuz": ("F8_E5M2FNUZ", 1),
}

# Of the step of integers that stand for floats: float32 holds all of their multiples.
LEAST_REST_EXPONENT, MOST_REST_EXPONENT = -126, 120

FLOATS = ("float16", "bfloat16", "float32", "float64")


# Of a parameter whose weight has its dimensions in another order: the parameter's shape, the shape
# before dimensions change places, and their order.
EntryView: TypeAlias = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]


class CheckpointError(ValueError):
    """A file that is damaged, of another kind, or does not fit the model."""


def positions_of(shape: tuple[int, ...], axis: str) -> int:
    """Kernel positions, one after the other in a row, that share their codebooks."""
    return math.prod(shape[2:]) if axis == "channels" else 1


@dataclass(frozen=True, slots=True)
class Entry:
    """What the header says of one coded weight; :class:`vq_plugin.reader.Layer` shows most of it.

    Attributes:
        codes: Shape of the codes, ``(stages, rows, subspaces)``.
        coding: How the codes were coded; ``None`` where they are packed.
    """

    scheme: str
    shape: tuple[int, ...]
    view: EntryView | None
    axis: str
    group: int | None
    codes: tuple[int, ...]
    dtype: str
    coding: Coding | None

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and their length, of the 2-D view."""
        first, rest = self.shape[0], math.prod(self.shape[1:])
        return (rest, first) if self.axis == "out" else (first, rest)

    @property
    def positions(self) -> int:
        """Kernel positions that share their codebooks, one after the other in a row."""
        return positions_of(self.shape, self.axis)


class Stored(NamedTuple):
    """What the header says of one tensor.

    Attributes:
        dtype: Its dtype in the file, a key of ``DTYPES``.
        shape: Its shape.
        checksum: CRC-32 of its bytes.
        rounded: The dtype that it had before it was rounded to the one in the file, or ``None``.
        exponent: Of the power of two that integers are multiples of which stand for floats.
    """

    dtype: str
    shape: tuple[int, ...]
    checksum: int
    rounded: str | None = None
    exponent: int | None = None

    @property
    def nbytes(self) -> int:
        """Bytes in the file."""
        return DTYPES[self.dtype][1] * math.prod(self.shape)


@dataclass(frozen=True)
class Header:
    """The metadata of a file.

    Attributes:
        layers: Coded weights by name. The tensors of ``fc`` are ``fc.codes`` and so on.
        aliases: Names of weights and of other tensors that are those of another name (ties).
        factors: Layers that are products of two below their names, and as what, as text.
        tensors: All tensors, in the order of their bytes.
    """

    layers: dict[str, Entry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    factors: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, Stored] = field(default_factory=dict)

    def books(self, name: str) -> tuple[int, ...]:
        """Shape of the codebooks of a stored weight, ``(stages, groups, books, k, dim)``."""
        return self.tensors[join(name, "codebooks")].shape

    def weights(self) -> Iterator[tuple[str, str]]:
        """Names of coded weights, each with the one that it is stored for."""
        yield from ((name, name) for name in self.layers)
        yield from ((name, to) for name, to in self.aliases.items() if to in self.layers)

    def others(self) -> Iterator[tuple[str, str]]:
        """Names of tensors that are of no coded weight, each with the one it is stored for."""
        own = {join(name, leaf) for name in self.layers for leaf in LEAVES}
        yield from ((name, name) for name in self.tensors if name not in own)
        yield from ((name, to) for name, to in self.aliases.items() if to not in self.layers)


def part_of(
    path: str | os.PathLike[str], header: Header, part: str
) -> tuple[Header, dict[str, str]]:
    """The header of one module or weight (all of them with the empty name), with names below it.

    Beside it, for each of its tensors the name in the file, if that is another. ``CheckpointError``
    if there is nothing of that name.
    """
    if not part:
        return header, {}
    own, places = Header(), dict[str, str]()
    first: dict[str, str] = {}
    for name, factor in header.factors.items():
        if name == part or name.startswith(f"{part}."):
            own.factors[name[len(part) :].removeprefix(".")] = factor
    for name, stored in (*header.weights(), *header.others()):
        if name != part and not name.startswith(f"{part}."):
            continue
        inside = name[len(part) :].removeprefix(".")
        # What is tied to something outside is stored for the first name inside.
        if first.setdefault(stored, inside) != inside:
            own.aliases[inside] = first[stored]
            continue
        names = {inside: stored}
        if stored in header.layers:
            own.layers[inside] = header.layers[stored]
            names = {join(inside, leaf): join(stored, leaf) for leaf in LEAVES}
        places |= {name: there for name, there in names.items() if there in header.tensors}
    if not first:
        raise CheckpointError(f"{path}: has nothing of {part!r}")
    own.tensors.update((name, header.tensors[there]) for name, there in places.items())
    return own, places


def join(name: str, leaf: str) -> str:
    """Name of a tensor of a weight; that of a bare layer is empty."""
    return f"{name}.{leaf}" if name else leaf


def check_weight(name: str, entry: Entry, header: Header) -> None:
    """Makes sure that the tensors of a weight fit each other and its shape."""
    codes, codebooks, exponents, scale = (header.tensors.get(join(name, leaf)) for leaf in LEAVES)
    if codes is None or codebooks is None or codes.dtype != "uint8" or len(codes.shape) != 1:
        raise ValueError(f"layer {name!r} has no codes, or no codebooks")
    if len(codebooks.shape) != 5 or 0 in codebooks.shape:
        raise ValueError(f"layer {name!r}: codebooks of shape {codebooks.shape}")
    is_int8 = codebooks.dtype == "int8"
    if is_int8 != (exponents is not None) or codebooks.dtype not in ("int8", *FLOATS):
        raise ValueError(f"layer {name!r} has exponents or int8 codebooks alone")
    stages, groups, books, _, dim = codebooks.shape
    rows, length = entry.matrix
    positions = entry.positions
    subspaces = -(-length // positions // dim)
    shape = stages, rows, positions * subspaces
    fits = (
        0 not in entry.shape
        and entry.codes == shape
        and groups == (-(-rows // entry.group) if entry.group else 1)
        and books in (1, subspaces)
        and (scale is None or _may_be_scales(scale, rows))
        and (exponents is None or exponents.shape == codebooks.shape[:3])
    )
    if not fits:
        raise ValueError(f"layer {name!r}: its tensors do not fit a weight of {entry.shape}")


def _may_be_scales(scale: Stored, rows: int) -> bool:
    """Whether a tensor can be the scales of so many rows: numbers, or bytes that stand for them."""
    if scale.dtype == "uint8":
        return len(scale.shape) == 1
    return scale.shape == (rows,) and scale.dtype in FLOATS
