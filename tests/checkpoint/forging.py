"""Files with other contents whose checksums are right, as only an attacker makes them."""

import copy
import json
import math
import zlib
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor

from vq_plugin.coding.numbers import decode_numbers, encode_numbers
from vq_plugin.format.dense import DICTIONARY


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, of any layout."""
    with safe_open(path, "pt") as file:
        text = file.metadata()["vq_plugin"]
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if tensors.keys() != {"data"}:
        return json.loads(text), tensors
    header, body = unpacked(path.read_bytes())
    tensors, start = {}, 0
    for key, (name, shape, *_) in header["tensors"].items():
        dtype = getattr(torch, name)
        end = start + math.prod(shape) * dtype.itemsize
        raw = torch.tensor(list(body[start:end]), dtype=torch.uint8)
        tensors[key], start = raw.view(dtype).reshape(shape), end
    assert start == len(body)
    return header, tensors


def sealed(header: dict[str, Any], tensors: dict[str, Tensor], layout: str = "dense") -> bytes:
    """A file of these tensors; what the header says of them is made anew but for what is last."""
    raw = {
        key: value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for key, value in tensors.items()
    }
    before = header["tensors"] if isinstance(header["tensors"], dict) else {}
    header["tensors"] = {
        key: [
            str(value.dtype).removeprefix("torch."),
            list(value.shape),
            zlib.crc32(raw[key]),
            *before.get(key, [])[3:],
        ]
        for key, value in tensors.items()
    }
    if layout == "readable":
        return save(tensors, {"vq_plugin": with_checksum(header)})
    return LAYOUTS[layout](header, b"".join(raw.values()))


def with_checksum(header: dict[str, Any]) -> str:
    header["checksum"] = 0
    header["checksum"] = zlib.crc32(json.dumps(header, separators=(",", ":")).encode())
    return json.dumps(header, separators=(",", ":"))


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a compact or dense file, and the bytes of the tensors, in its order."""
    size = 8 + int.from_bytes(content[:8], "little")
    outer = json.loads(content[8:size])["__metadata__"]["vq_plugin"]
    if outer.startswith("{"):
        end = size + json.loads(outer)["header"]
        return json.loads(zlib.decompress(content[size:end])), content[end:]
    end = size + int(outer.split(",")[1])
    inflater = zlib.decompressobj(-15, DICTIONARY)
    text, _, first = inflater.decompress(content[size:end]).partition(b"\0")
    header: dict[str, Any] = json.loads(text)
    tensors = header["tensors"]
    sizes = {
        name: math.prod(shape) * getattr(torch, dtype).itemsize
        for name, (dtype, shape, *_) in tensors.items()
    }
    place = {name: _place(kind) for name, kind in tensors.items()}
    others = sum(size for name, size in sizes.items() if place[name] == 2)
    count = sum(size for name, size in sizes.items() if place[name] == 1)
    coded = np.frombuffer(content[end : len(content) - others], np.uint8)
    sources = [
        first,
        decode_numbers(coded, count).tobytes() if count else b"",
        content[len(content) - others :],
    ]
    body = b""
    for name, kind in tensors.items():
        source = sources[place[name]]
        data, sources[place[name]] = source[: sizes[name]], source[sizes[name] :]
        kind[2] = zlib.crc32(data)
        body += data
    return header, body


def _place(kind: Any) -> int:
    """Of a tensor of a dense file: with the header, among the numbers, or as it is."""
    return 0 if not kind[1] else 1 if len(kind) > 4 else 2


def packed(header: dict[str, Any], body: bytes, shift: int = 0, outer: int = 1) -> bytes:
    """A compact file; `shift` is added to the length of the header that it says."""
    text = zlib.compress(with_checksum(header).encode(), 9)
    data = torch.frombuffer(bytearray(text + body), dtype=torch.uint8)
    pointer = json.dumps({"format": outer, "header": len(text) + shift}, separators=(",", ":"))
    return save({"data": data}, {"vq_plugin": pointer})


def dense(header: dict[str, Any], body: bytes, shift: int = 0, outer: int = 1) -> bytes:
    """A dense file; what cannot be split into tensors is all after the header."""
    parts = [b"", b"", b""]
    header = copy.deepcopy(header)
    with suppress(TypeError, AttributeError, LookupError, RuntimeError):
        for kind in header["tensors"].values():
            size, place = math.prod(kind[1]) * getattr(torch, kind[0]).itemsize, _place(kind)
            data, body = body[:size], body[size:]
            parts[place] += data
            # What is not its checksum stays, for readers to refuse it.
            kind[2] = 0 if kind[2] == zlib.crc32(data) else kind[2]
    first, numbers, others = parts
    if numbers:
        # No number is -128.
        values = np.maximum(np.frombuffer(numbers, np.int8), -127)
        others = encode_numbers(values).tobytes() + others
    others += body
    ending = b"\0" + first if first else b""
    header["checksum"] = 0
    text = json.dumps(header, separators=(",", ":")).encode()
    header["checksum"] = zlib.crc32(others, zlib.crc32(ending, zlib.crc32(text)))
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15, 9, zlib.Z_DEFAULT_STRATEGY, DICTIONARY)
    text = json.dumps(header, separators=(",", ":")).encode() + ending
    short = deflater.compress(text) + deflater.flush()
    data = torch.frombuffer(bytearray(short + others), dtype=torch.uint8)
    return save({"data": data}, {"vq_plugin": f"{outer},{len(short) + shift}"})


LAYOUTS = {"compact": packed, "dense": dense}
