"""Golden files, and files with other contents whose checksums are right."""

import json
import math
import zlib
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any, Literal

import torch
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

GOLDEN = Path(__file__).parent / "golden"
WAYS = ["layer", "stage", "row", "subspace", "previous", "class"]


def golden_model(kind: Literal["Model", "Int8Model"] = "Model") -> nn.Module:
    spec = spec_from_file_location("golden_make", GOLDEN / "make.py")
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    model: nn.Module = getattr(module, kind)()
    return model


def contents(path: Path) -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Header and tensors; the header of a compact file in the keys of the others."""
    with safe_open(path, "pt") as file:
        header = json.loads(file.metadata()["vq_plugin"])
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    if "header" not in header:
        return header, tensors
    header, body = unpacked(path.read_bytes())
    tensors, kinds, start = {}, header.pop("tensors"), 0
    for key, (name, shape, *_) in kinds.items():
        dtype = getattr(torch, name)
        end = start + math.prod(shape) * dtype.itemsize
        raw = torch.frombuffer(bytearray(body[start:end]), dtype=torch.uint8)
        tensors[key], start = raw.view(dtype).reshape(shape), end
    assert start == len(body)
    header["checksums"] = dict(zip(kinds, header["checksums"], strict=True))
    header["rounded"] = {key: kind[2] for key, kind in kinds.items() if len(kind) > 2}
    return header, tensors


def sealed(header: dict[str, Any], tensors: dict[str, Tensor]) -> bytes:
    """A file whose checksums are right, as only an attacker makes one of wrong content."""
    raw = {
        key: value.contiguous().flatten().view(torch.uint8).numpy().tobytes()
        for key, value in tensors.items()
    }
    kinds = {key: (str(value.dtype), list(value.shape)) for key, value in tensors.items()}
    header["checksums"] = {
        key: zlib.crc32(raw[key], zlib.crc32(f"{dtype}{shape}".encode()))
        for key, (dtype, shape) in kinds.items()
    }
    if header["format"] not in (3, 4):
        return save(tensors, {"vq_plugin": with_checksum(header)})
    rounded = header.pop("rounded")
    rounded = rounded if isinstance(rounded, dict) else {}
    header["checksums"] = list(header["checksums"].values())
    header["tensors"] = {
        key: [dtype.removeprefix("torch."), shape, *([rounded[key]] if key in rounded else [])]
        for key, (dtype, shape) in kinds.items()
    }
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


def packed(header: dict[str, Any], body: bytes, shift: int = 0, outer: int = 0) -> bytes:
    """A compact file; `shift` is added to the length of the header that it says."""
    text = zlib.compress(with_checksum(header).encode(), 9)
    data = torch.frombuffer(bytearray(text + body), dtype=torch.uint8)
    version = outer or header["format"]
    pointer = json.dumps({"format": version, "header": len(text) + shift}, separators=(",", ":"))
    return save({"data": data}, {"vq_plugin": pointer})
