"""The header of a file: a JSON text with what is needed to rebuild the layers, and checksums."""

from __future__ import annotations

import json
import os
import zlib
from dataclasses import asdict, dataclass, field, replace
from typing import Any, Literal

from vq_plugin.coding.entropy import Coding

# The format of files whose header is compressed: it says what safetensors says of the others.
COMPACT = 3
# With codes in classes, in either layout.
FORMAT = 4


class CheckpointError(ValueError):
    """A file that is damaged, of another kind, or does not fit the model."""


@dataclass(frozen=True)
class LayerEntry:
    """What the header says of one codebook layer.

    Attributes:
        scheme: The scheme as text.
        shape: Shape of the weight.
        codes: Shape of the codes, ``(stages, rows, subspaces)``.
        k: Centers per codebook.
        dtype: Dtype of the layer's codebooks in memory.
    """

    scheme: str
    shape: list[int]
    codes: list[int]
    k: int
    dtype: str


@dataclass(frozen=True)
class Header:
    """The metadata of a file.

    Attributes:
        layers: Codebook layers by name.
        aliases: Tensor names that stand for another tensor of the file (tied weights).
        checksums: CRC-32 of dtype, shape and bytes of every tensor.
        checksum: CRC-32 of the header's own text, with a 0 in this place.
        format: Version of the format: 1, or 2 where codes are entropy-coded or tensors rounded,
            or 3, the same in the compact layout, or 4, with codes in classes, in either layout.
        coded: How the codes of layers were coded; those of the others are packed. From format 2 on.
        rounded: Dtypes in the model of tensors that are stored as float16. From format 2 on.
        tensors: Dtypes and shapes, in the order of the tensors. Compact layout only.
    """

    layers: dict[str, LayerEntry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    checksum: int = 0
    format: int = 1
    coded: dict[str, Coding] = field(default_factory=dict)
    rounded: dict[str, Literal["float32", "float64"]] = field(default_factory=dict)
    tensors: dict[str, tuple[str, list[int]]] = field(default_factory=dict)

    def coding(self, name: str) -> Coding | None:
        """How the codes of a layer, or of the one it is tied to, were coded."""
        key = join(name, "codes")
        return self.coded.get(self.aliases.get(key, key).rpartition(".")[0])


def header_json(header: Header) -> bytes:
    """The text of a header; equal headers give equal bytes."""
    content = asdict(header)
    tensors, rounded = content.pop("tensors"), header.rounded
    if header.format == 1:
        del content["coded"], content["rounded"]
    if header.tensors:
        # Every name once: names are most of a header.
        del content["rounded"]
        content["checksums"] = [header.checksums[key] for key in tensors]
        content["tensors"] = {
            key: [*kind, *([rounded[key]] if key in rounded else [])]
            for key, kind in tensors.items()
        }
    return json.dumps(content, separators=(",", ":")).encode()


def parse_header(path: str | os.PathLike[str], text: str, *, compact: int | None = None) -> Header:
    """Reads the text of a header.

    Args:
        path: The file, for messages.
        text: What :func:`header_json` wrote, or anything else.
        compact: The format that a file of the compact layout says outside of its header.

    Raises:
        CheckpointError: If it is damaged or of a newer version.
    """
    from pydantic import TypeAdapter

    try:
        content = json.loads(text)
        version = int(content["format"])
        if version < 1:
            raise ValueError(f"there is no format {version}")
        if version <= FORMAT:
            if compact != (version if compact or version == COMPACT else None):
                raise ValueError(f"it is not that of a file of format {version}")
            full = json.dumps(_with_names(content)) if compact else text
            header: Header = TypeAdapter(Header).validate_json(full, strict=True)
            if header.checksum != zlib.crc32(header_json(replace(header, checksum=0))):
                raise ValueError("its checksum differs")
            if not header.checksums.keys() >= set(header.aliases.values()):
                raise ValueError("an alias names no tensor")
            if not header.layers.keys() >= header.coded.keys():
                raise ValueError("it says how a layer was coded that it does not have")
            if not header.checksums.keys() >= header.rounded.keys():
                raise ValueError("it says that a tensor was rounded that it does not have")
            if header_json(header) != text.encode():
                raise ValueError("it has keys that this version does not know")
            return header
    except (ValueError, KeyError, TypeError, OverflowError, RecursionError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error})") from error
    raise CheckpointError(
        f"{path}: format {version} is newer than this vq_plugin reads ({FORMAT}); upgrade it"
    )


def _with_names(content: dict[str, Any]) -> dict[str, Any]:
    """A compact header in the keys of the others."""
    tensors = dict(content["tensors"])
    return {
        **content,
        "checksums": dict(zip(tensors, content["checksums"], strict=True)),
        "rounded": {key: kind[2] for key, kind in tensors.items() if len(kind) > 2},
        "tensors": {key: kind[:2] for key, kind in tensors.items()},
    }


def part_of(
    path: str | os.PathLike[str], header: Header, part: str
) -> tuple[Header, dict[str, str]]:
    """What a header says of one module, and where its tensors are.

    Args:
        path: The file, for messages.
        header: The header of the whole file.
        part: Name of the module.

    Returns:
        A header with names that start below the module, and for every stored tensor that it needs
        the name there.

    Raises:
        CheckpointError: If there is no tensor below the name.
    """
    start = f"{part}."
    names: dict[str, str] = {}
    own = Header(format=header.format)
    for key in (*header.checksums, *header.aliases):
        if key.startswith(start):
            # What is tied to a tensor outside is stored for the first name inside.
            stored, name = header.aliases.get(key, key), key.removeprefix(start)
            if names.setdefault(stored, name) != name:
                own.aliases[name] = names[stored]
            own.checksums[names[stored]] = header.checksums[stored]
            if stored in header.rounded:
                own.rounded[names[stored]] = header.rounded[stored]
    if not names:
        raise CheckpointError(f"{path}: has nothing of {part!r}")
    for name, entry in header.layers.items():
        if f"{name}.".startswith(start):
            own.layers[name[len(start) :]] = entry
            coding = header.coding(name)
            if coding is not None:
                own.coded[name[len(start) :]] = coding
    return own, names


def join(name: str, leaf: str) -> str:
    """Name of a tensor of a layer; that of a bare layer is empty."""
    return f"{name}.{leaf}" if name else leaf
