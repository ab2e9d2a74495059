"""Where the bytes are: in a safetensors file of every tensor, or of a single one of bytes.

Names, shapes and checksums in readable text can take a quarter of the file of a small model, whose
layout is hence the dense one, see :mod:`vq_plugin.format.dense`.
"""

from __future__ import annotations

import errno
import json
import os
import re
import stat
import zlib
from collections.abc import Mapping
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vq_plugin.format.bounds import check_values, inflate
from vq_plugin.format.dense import Dense, write_dense
from vq_plugin.format.header import DTYPES, FORMAT, CheckpointError, Header, Stored, part_of
from vq_plugin.format.positions import Positions
from vq_plugin.format.text import check_version, header_json, parse_header

_KEY = "vq_plugin"
_DATA = "data"
# What a tensor cannot be named in safetensors.
_METADATA = "__metadata__"
# A share of the file that a readable header is worth.
_READABLE = 1 / 1000
# Version and length of a short header: of the dense layout, and of the compact one.
_DENSE = re.compile("([1-9][0-9]{0,8}),([1-9][0-9]{0,9})")
_COMPACT = re.compile(r'{"format":([0-9]{1,9}),"header":([1-9][0-9]{0,9})}')
_LENGTH = 8


def to_bytes(header: Header, tensors: Mapping[str, tuple[Stored, NDArray[np.uint8]]]) -> bytes:
    """The bytes of a file: a header without tensors, and tensors without their checksums."""
    # Every tensor of a safetensors file starts at a multiple of its item's size.
    order = sorted(tensors, key=lambda name: (-DTYPES[tensors[name][0].dtype][1], name))
    kinds = {
        name: tensors[name][0]._replace(checksum=zlib.crc32(tensors[name][1].data))
        for name in order
    }
    text = header_json(replace(header, tensors=kinds))
    data = [tensors[name][1] for name in order]
    ends = accumulate((kind.nbytes for kind in kinds.values()), initial=0)
    entries = {
        name: {"dtype": DTYPES[kind.dtype][0], "shape": kind.shape, "data_offsets": span}
        for (name, kind), span in zip(kinds.items(), pairwise(ends), strict=True)
    }
    readable = _safetensors(text, entries, data)
    named = _METADATA not in entries
    if named and _LENGTH + int.from_bytes(readable[:_LENGTH], "little") <= _READABLE * len(
        readable
    ):
        return readable
    dense = write_dense(header, {name: (kinds[name], tensors[name][1]) for name in order})
    if dense is None:
        if not named:
            raise ValueError(f"no tensor of safetensors can have the name {_METADATA!r}")
        return readable
    size, content = dense
    whole = {"dtype": "U8", "shape": [len(content)], "data_offsets": [0, len(content)]}
    return _safetensors(f"{FORMAT},{size}", {_DATA: whole}, [np.frombuffer(content, np.uint8)])


class Container:
    """A file that was opened: its header, and its tensors when they are asked for.

    ``part`` is the name of a module or weight: there is nothing else then, and names start below
    it. A ``CheckpointError`` says that the header is damaged, or of another kind or version, or
    has nothing of that name; an ``OSError`` that there is no file, but a folder or a pipe.

    Attributes:
        header: Of the part.
        size: Bytes of the whole file.
        values: How many values the weights of the whole file stand for, see
            :func:`vq_plugin.format.bounds.check_values`.
    """

    def __init__(self, path: str | os.PathLike[str], part: str = "") -> None:
        self.path = os.fspath(path)
        # To open a pipe that nobody writes to would take for ever.
        if not stat.S_ISREG(os.stat(self.path).st_mode):
            kind = "a folder" if os.path.isdir(self.path) else "no ordinary file"
            raise IsADirectoryError(errno.EISDIR, f"{kind}, not a vq_plugin file", self.path)
        self._bytes = Positions(self.path)
        self.size = self._bytes.size
        self._dense: Dense | None = None
        self._places: dict[str, int] = {}
        try:
            text, entries, data = self._open()
            dense, compact = _DENSE.fullmatch(text), _COMPACT.fullmatch(text)
            if dense is not None:
                check_version(path, int(dense[1]))
                size = self._header_size(int(dense[2]), entries, data)
                # One checksum is of all of it, and it must not change after that was looked at.
                content = memoryview(self._bytes.read(data, self.size))
                self._dense = Dense(self.path, content, size)
                header = self._dense.header
            elif compact is not None and int(compact[1]) == FORMAT:
                size = self._header_size(int(compact[2]), entries, data)
                header, self._places = self._compact(size, data)
            else:
                header = parse_header(path, text, len(text))
                self._places = _by_name(header, entries, data)
        except CheckpointError:
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(
                f"{path}: damaged or not a vq_plugin file ({error or type(error).__name__})"
            ) from error
        try:
            self.values = check_values(header, self.size)
        except ValueError as error:
            raise CheckpointError(f"{path}: {error}") from error
        self.header, self._names = part_of(path, header, part)

    def raw(self, name: str) -> NDArray[np.uint8]:
        """The bytes of a tensor, in memory of their own; ``CheckpointError`` if damaged."""
        found = np.frombuffer(self._checked(name), np.uint8)
        return found if self._dense is None else found.copy()

    def check(self) -> dict[str, int]:
        """The bytes of every tensor, checked; ``CheckpointError`` if one is damaged."""
        return {name: len(self._checked(name)) for name in self.header.tensors}

    def _checked(self, name: str) -> memoryview | bytearray:
        stored, kind = self._names.get(name, name), self.header.tensors[name]
        if self._dense is not None:
            try:
                return self._dense.raw(stored)
            except ValueError as error:
                raise CheckpointError(f"{self.path}: tensor {stored!r}: {error}") from error
        start = self._places[stored]
        try:
            data = self._bytes.read(start, start + kind.nbytes)
        except ValueError as error:
            raise CheckpointError(f"{self.path}: tensor {stored!r}: {error}") from error
        if zlib.crc32(data) != kind.checksum:
            raise CheckpointError(f"{self.path}: tensor {stored!r} is damaged (checksum differs)")
        return data

    def _open(self) -> tuple[str, dict[str, Any], int]:
        """What safetensors keeps for us, its entries, and where its data start."""
        size = int.from_bytes(self._bytes.read(0, min(_LENGTH, self.size)), "little")
        data = _LENGTH + size
        if not _LENGTH < data <= self.size:
            raise ValueError("its length is not that of a file with such a header")
        entries = json.loads(self._bytes.read(_LENGTH, data))
        text = (entries.pop(_METADATA, None) or {}).get(_KEY)
        if not isinstance(text, str):
            raise CheckpointError(
                f"{self.path}: a safetensors file, but not one that vq_plugin wrote"
            )
        end = 0
        for start, stop in sorted(entry["data_offsets"] for entry in entries.values()):
            if start != end or stop < start or type(start) is not int or type(stop) is not int:
                raise ValueError("its tensors have gaps or overlap")
            end = stop
        if end != self.size - data:
            raise ValueError(f"its tensors end at byte {end} of {self.size - data}")
        return text, entries, data

    def _header_size(self, size: int, entries: dict[str, Any], data: int) -> int:
        whole = {"dtype": "U8", "shape": [self.size - data], "data_offsets": [0, self.size - data]}
        if entries != {_DATA: whole} or data + size > self.size:
            raise ValueError(f"a file of a short header has one tensor, {_DATA!r}, of bytes")
        return size

    def _compact(self, size: int, data: int) -> tuple[Header, dict[str, int]]:
        """The layout that was written before the dense one: a header with checksums."""
        end = data + size
        text = inflate(bytes(self._bytes.read(data, end)), zlib.MAX_WBITS)
        header = parse_header(self.path, text.decode("ascii"), size)
        places = {}
        for name, kind in header.tensors.items():
            places[name] = end
            end += kind.nbytes
        if end != self.size:
            raise ValueError(f"its tensors end at byte {end} of {self.size}")
        return header, places


def read_header(path: str | os.PathLike[str]) -> tuple[Header, dict[str, int]]:
    """The header of a file and the bytes of every tensor in it, which are checked.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or of another kind or version.
    """
    file = Container(path)
    return file.header, file.check()


def _by_name(header: Header, entries: dict[str, Any], data: int) -> dict[str, int]:
    """Where the tensors start."""
    if entries.keys() != header.tensors.keys():
        odd = min(entries.keys() ^ header.tensors.keys())
        raise ValueError(f"tensor {odd!r} is missing, or of no use")
    places = {}
    for name, kind in header.tensors.items():
        start, end = entries[name]["data_offsets"]
        known = DTYPES[kind.dtype][0], list(kind.shape), kind.nbytes
        if known != (entries[name]["dtype"], entries[name]["shape"], end - start):
            raise ValueError(f"tensor {name!r} is not what the header says")
        places[name] = data + start
    return places


def _safetensors(text: str, entries: dict[str, Any], data: list[NDArray[np.uint8]]) -> bytes:
    header = json.dumps({_METADATA: {_KEY: text}, **entries}, separators=(",", ":")).encode()
    header += b" " * (-len(header) % 8)
    return b"".join(
        (len(header).to_bytes(_LENGTH, "little"), header, *(part.data for part in data))
    )
