"""Files with other contents whose checksums are right, as only an attacker makes them."""

import json
import math
import zlib
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors, of either layout."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "header" not in header:
        return header, tensors
    header, body = unpacked(path.read_bytes())
    tensors, start = {}, 0
    for key, (name, shape, *_) in header["tensors"].items():
        dtype = getattr(torch, name)
        end = start + math.prod(shape) * dtype.itemsize
        raw = torch.tensor(list(body[start:end]), dtype=torch.uint8)
        tensors[key], start = raw.view(dtype).reshape(shape), end
    assert start == len(body)
    return header, tensors


def sealed(header: dict[str, Any], tensors: dict[str, Tensor], *, readable: bool = False) -> bytes:
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
    if readable:
        return save(tensors, {"vq_plugin": with_checksum(header)})
    return packed(header, b"".join(raw.values()))


def with_checksum(header: dict[str, Any]) -> str:
    header["checksum"] = 0
    header["checksum"] = zlib.crc32(json.dumps(header, separators=(",", ":")).encode())
    return json.dumps(header, separators=(",", ":"))


def unpacked(content: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a compact file as it is written, and the bytes of the tensors."""
    size = 8 + int.from_bytes(content[:8], "little")
    outer = json.loads(content[8:size])["__metadata__"]["vq_plugin"]
    end = size + json.loads(outer)["header"]
    return json.loads(zlib.decompress(content[size:end])), content[end:]


def packed(header: dict[str, Any], body: bytes, shift: int = 0, outer: int = 1) -> bytes:
    """A compact file; `shift` is added to the length of the header that it says."""
    text = zlib.compress(with_checksum(header).encode(), 9)
    data = torch.frombuffer(bytearray(text + body), dtype=torch.uint8)
    pointer = json.dumps({"format": outer, "header": len(text) + shift}, separators=(",", ":"))
    return save({"data": data}, {"vq_plugin": pointer})
