"""Where the bytes are: in a safetensors file of every tensor, or, compact, of a single one.

Names, shapes and checksums in readable text can take a quarter of the file of a small model. The
compact layout has one tensor of bytes: first the header, compressed, then all tensors of the model.
"""

from __future__ import annotations

import math
import os
import re
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor

from vq_plugin.checkpoint.header import (
    COMPACT,
    FORMAT,
    CheckpointError,
    Header,
    header_json,
    parse_header,
    part_of,
)

_KEY = "vq_plugin"
_DATA = "data"
# A share of the file that a readable header is worth.
_READABLE = 1 / 100
# A header is so many times as long as it is compressed, at most: a few bytes cannot fill a machine.
_MOST_EXPANDED = 64
_POINTER = re.compile(rf'{{"format":([{COMPACT}-{FORMAT}]),"header":([1-9][0-9]{{0,9}})}}')
# What any dtype that safetensors stores is called in a header.
_DTYPES = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        *(torch.bool, torch.uint8, torch.uint16, torch.uint32, torch.uint64),
        *(torch.int8, torch.int16, torch.int32, torch.int64),
        *(torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.complex64),
        *(torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz),
    )
}


def to_bytes(header: Header, tensors: dict[str, Tensor]) -> bytes:
    """The bytes of a file.

    Args:
        header: Format 1, 2 or 4, without checksums. Format 2 becomes 3, the compact layout, where
            the readable header would take more than 1 % of the file; 4 has that layout then.
        tensors: Contiguous ones on the CPU that share no memory, by name.

    Raises:
        ValueError: If a tensor is of a dtype that safetensors cannot keep.
    """
    header = replace(header, checksums={key: _checksum(value) for key, value in tensors.items()})
    try:
        # One entry: safetensors writes several in an order that changes from run to run.
        data: bytes = to_safetensors(tensors, {_KEY: _sealed(header).decode()})
    except KeyError as error:
        key = next(key for key, value in tensors.items() if value.dtype == error.args[0])
        raise ValueError(f"{key!r} is of dtype {error}, which safetensors cannot keep") from error
    readable = 8 + int.from_bytes(data[:8], "little")
    if header.format == 1 or readable <= _READABLE * len(data):
        return data
    compact = _compact(header, tensors)
    return data if compact is None else compact


def read(path: str | os.PathLike[str], part: str = "") -> tuple[Header, dict[str, Tensor]]:
    """The header of a file and its tensors as they are stored, checked.

    Args:
        path: The file.
        part: Name of a module: nothing else is read, and names start below it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or of another kind or version.
    """
    tensors: dict[str, Tensor] = {}
    with _opened(path) as (whole, found, tensor):
        header, names = whole, {key: key for key in whole.checksums}
        if part:
            header, names = part_of(path, whole, part)
        elif found - names.keys():
            added = min(found - names.keys())
            raise CheckpointError(f"{path}: tensor {added!r} is damaged (it has no checksum)")
        for key, own in names.items():
            if key not in found:
                raise CheckpointError(f"{path}: damaged, tensor {key!r} is missing")
            try:
                tensors[own] = tensor(key)
            except (ValueError, RuntimeError, TypeError) as error:
                raise CheckpointError(f"{path}: tensor {key!r} is damaged ({error})") from error
            if header.checksums[own] != _checksum(tensors[own]):
                raise CheckpointError(f"{path}: tensor {key!r} is damaged (checksum differs)")
    return header, tensors


def _compact(header: Header, tensors: dict[str, Tensor]) -> bytes | None:
    """A compact file; ``None`` if its header would be refused."""
    kinds = {
        key: (str(value.dtype).removeprefix("torch."), list(value.shape))
        for key, value in tensors.items()
    }
    header = replace(header, format=max(header.format, COMPACT), tensors=kinds)
    text = _sealed(header)
    packed = zlib.compress(text, 9)
    known = all(name in _DTYPES for name, _ in kinds.values())
    if not known or len(text) > _MOST_EXPANDED * len(packed):
        return None
    parts = [torch.frombuffer(bytearray(packed), dtype=torch.uint8)]
    data = torch.cat([*parts, *(_raw(value) for value in tensors.values())])
    pointer = f'{{"format":{header.format},"header":{len(packed)}}}'
    found: bytes = to_safetensors({_DATA: data}, {_KEY: pointer})
    return found


@contextmanager
def _opened(
    path: str | os.PathLike[str],
) -> Iterator[tuple[Header, set[str], Callable[[str], Tensor]]]:
    """The header of a file, the names of its tensors, and how to read one."""
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            if _KEY not in metadata:
                raise CheckpointError(
                    f"{path}: a safetensors file, but not one that vq_plugin wrote"
                )
            pointer = _POINTER.fullmatch(metadata[_KEY])
            if pointer is None:
                yield parse_header(path, metadata[_KEY]), set(file.keys()), file.get_tensor
                return
            try:
                header, places, data = _open_compact(path, file, int(pointer[1]), int(pointer[2]))
            except (ValueError, zlib.error) as error:
                if isinstance(error, CheckpointError):
                    raise
                raise CheckpointError(f"{path}: the header is damaged ({error})") from error

            def tensor(key: str) -> Tensor:
                name, shape = header.tensors[key]
                # A copy: what lies at an odd place cannot be seen as floats.
                raw: Tensor = data[places[key]].clone()
                return raw.view(_DTYPES[name]).reshape(shape)

            yield header, set(places), tensor
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a vq_plugin file ({error})") from error


def _open_compact(
    path: str | os.PathLike[str], file: Any, version: int, size: int
) -> tuple[Header, dict[str, slice], Any]:
    """The header, where in the data every tensor is, and the data, of which nothing is read."""
    if set(file.keys()) != {_DATA}:
        raise ValueError(f"a compact file has one tensor, {_DATA!r}")
    data = file.get_slice(_DATA)
    shape = data.get_shape()
    if data.get_dtype() != "U8" or len(shape) != 1 or shape[0] < size:
        raise ValueError(f"{data.get_dtype()} {shape} cannot hold a header of {size} bytes")
    inflate = zlib.decompressobj()
    text = inflate.decompress(data[:size].numpy().tobytes(), _MOST_EXPANDED * size)
    if not inflate.eof or inflate.unused_data:
        raise ValueError("it does not end where it should")
    header = parse_header(path, text.decode(), compact=version)
    places, end = {}, size
    for key, (name, lengths) in header.tensors.items():
        if name not in _DTYPES or any(length < 0 for length in lengths):
            raise ValueError(f"tensor {key!r} cannot be {name} {lengths}")
        start, end = end, end + _DTYPES[name].itemsize * math.prod(lengths)
        places[key] = slice(start, end)
    if end != shape[0]:
        raise ValueError(f"its tensors end at byte {end} of {shape[0]}")
    return header, places, data


def _sealed(header: Header) -> bytes:
    return header_json(replace(header, checksum=zlib.crc32(header_json(header))))


def _checksum(value: Tensor) -> int:
    # Dtype and shape too: the same bytes mean something else with others.
    kind = zlib.crc32(f"{value.dtype}{list(value.shape)}".encode())
    return zlib.crc32(_raw(value).numpy().data, kind)


def _raw(value: Tensor) -> Tensor:
    return value.contiguous().flatten().view(torch.uint8)
