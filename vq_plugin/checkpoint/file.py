"""Compressed models as safetensors files: nothing is ever pickled.

The file holds the whole ``state_dict``. Codes are packed to their exact width, codebooks and
scales keep the scheme's ``codebook_dtype``, everything else keeps its own. One metadata entry,
``vq_plugin``, is a JSON text with what is needed to rebuild the layers, and checksums.
"""

from __future__ import annotations

import copy
import difflib
import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as to_safetensors
from torch import Tensor, nn

from vq_plugin.checkpoint.packing import pack, unpack
from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.schemes import parse_scheme

FORMAT = 1
_KEY = "vq_plugin"


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
        format: Version of the format.
    """

    layers: dict[str, LayerEntry] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    checksums: dict[str, int] = field(default_factory=dict)
    checksum: int = 0
    format: int = FORMAT


def save(model: nn.Module, path: str | os.PathLike[str]) -> int:
    """Writes a compressed model to a file, in one atomic step.

    Args:
        model: A model with codebook layers.
        path: Where to; an existing file is replaced.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: If the model has no codebook layer, or state that is not a tensor.

    Example:
        >>> import tempfile
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 64), vq.KM(k=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = vq.save(small, f"{folder}/model.vq")
        ...     again = vq.load(f"{folder}/model.vq", nn.Linear(64, 64))
        >>> bool(torch.equal(again.weight, small.weight))
        True
    """
    layers = {n: m for n, m in model.named_modules() if isinstance(m, CodebookLayer)}
    if not layers:
        raise ValueError("the model has no codebook layer; compress it first")
    every_name = {
        n: m for n, m in model.named_modules(remove_duplicate=False) if isinstance(m, CodebookLayer)
    }
    tensors: dict[str, Tensor] = {}
    header = Header(layers={name: _entry(layer) for name, layer in layers.items()})
    first: dict[tuple[int, bool], str] = {}
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} holds a {type(value).__name__}, which a file without pickle cannot keep"
            )
        name, _, leaf = key.rpartition(".")
        # Codes are unpacked for every name: layers are tied if they share their codebooks.
        own = every_name[name].codebooks if leaf == "codes" and name in every_name else value
        owner = first.setdefault((id(own), leaf == "codes"), key)
        if owner != key:
            header.aliases[key] = owner
            continue
        # A copy: safetensors refuses tensors that share memory.
        tensors[key] = _stored(layers.get(name), leaf, value).cpu().contiguous().clone()
    header.checksums.update((key, _checksum(value)) for key, value in tensors.items())
    header = replace(header, checksum=zlib.crc32(_as_json(header)))
    # One entry: safetensors writes several in an order that changes from run to run.
    metadata = {_KEY: _as_json(header).decode()}
    try:
        data = to_safetensors(tensors, metadata)
    except KeyError as error:
        key = next(key for key, value in tensors.items() if value.dtype == error.args[0])
        raise ValueError(f"{key!r} is of dtype {error}, which safetensors cannot keep") from error
    _write_atomically(Path(path), data)
    return len(data)


def load(path: str | os.PathLike[str], model: nn.Module) -> nn.Module:
    """Rebuilds a compressed model from a file and a fresh float model.

    Args:
        path: A file that :func:`save` wrote.
        model: Float model of the same architecture and dtype; its values do not matter and it is
            not changed.

    Returns:
        A new model with codebook layers, on the devices and in the training mode of ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, of another kind or version, or names layers or
            tensors that the model lacks.
    """
    header, tensors = read(path)
    modules = dict(model.named_modules(remove_duplicate=False))
    replacements: dict[str, CodebookLayer] = {}
    for name, entry in header.layers.items():
        source = modules.get(name)
        if source is None:
            near = difflib.get_close_matches(name, modules, n=3)
            hint = f"; the nearest names are {', '.join(near)}" if near else ""
            raise CheckpointError(f"{path}: the model has no layer {name!r}{hint}")
        kind = codebook_type(source)
        if kind is None:
            raise CheckpointError(
                f"{path}: layer {name!r} of the model is a {type(source).__name__}, which has no "
                "codebook layer; give load() a fresh float model"
            )
        replacements[name] = _rebuild(path, name, entry, header, tensors, source, kind)
    for name, layer in replacements.items():
        owner = header.aliases.get(_join(name, "codes"))
        if owner is not None:
            layer.share(replacements[owner.rpartition(".")[0]])
    memo: dict[int, object] = {id(modules[name]): layer for name, layer in replacements.items()}
    restored = copy.deepcopy(model, memo)
    _load_rest(path, restored, header, tensors)
    return restored


def read_header(path: str | os.PathLike[str]) -> tuple[Header, dict[str, int]]:
    """The header of a file and the bytes of every tensor in it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or of another kind or version.
    """
    header, tensors = read(path)
    return header, {key: value.nbytes for key, value in tensors.items()}


def read(path: str | os.PathLike[str]) -> tuple[Header, dict[str, Tensor]]:
    """The header and all stored tensors of a file, checked against the checksums.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or of another kind or version.
    """
    try:
        with safe_open(os.fspath(path), "pt") as file:
            metadata = file.metadata() or {}
            tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
    except SafetensorError as error:
        raise CheckpointError(f"{path}: damaged or not a vq_plugin file ({error})") from error
    if _KEY not in metadata:
        raise CheckpointError(f"{path}: a safetensors file, but not one that vq_plugin wrote")
    header = _parse_header(path, metadata[_KEY])
    for key, value in tensors.items():
        if header.checksums.get(key) != _checksum(value):
            raise CheckpointError(f"{path}: tensor {key!r} is damaged (checksum differs)")
    missing = header.checksums.keys() - tensors.keys()
    if missing:
        raise CheckpointError(f"{path}: damaged, tensor {min(missing)!r} is missing")
    return header, tensors


def _as_json(header: Header) -> bytes:
    return json.dumps(asdict(header), separators=(",", ":")).encode()


def _parse_header(path: str | os.PathLike[str], text: str) -> Header:
    from pydantic import TypeAdapter

    try:
        version = int(json.loads(text)["format"])
        if version <= FORMAT:
            header: Header = TypeAdapter(Header).validate_json(text, strict=True)
            if header.checksum != zlib.crc32(_as_json(replace(header, checksum=0))):
                raise ValueError("its checksum differs")
            if not header.checksums.keys() >= set(header.aliases.values()):
                raise ValueError("an alias names no tensor")
            if _as_json(header) != text.encode():
                raise ValueError("it has keys that this version does not know")
            return header
    except (ValueError, KeyError, TypeError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error})") from error
    raise CheckpointError(
        f"{path}: format {version} is newer than this vq_plugin reads ({FORMAT}); upgrade it"
    )


def _rebuild(
    path: str | os.PathLike[str],
    name: str,
    entry: LayerEntry,
    header: Header,
    tensors: Mapping[str, Tensor],
    source: nn.Module,
    kind: type[CodebookLayer],
) -> CodebookLayer:
    def stored(leaf: str) -> Tensor | None:
        key = _join(name, leaf)
        return tensors.get(header.aliases.get(key, key))

    weight = source.weight
    assert isinstance(weight, Tensor)
    packed, codebooks, scale = stored("codes"), stored("codebooks"), stored("scale")
    try:
        if packed is None or codebooks is None:
            raise ValueError("its codes or codebooks are missing")
        stages, rows, subspaces = entry.codes
        codes = unpack(packed, stages * rows * subspaces, entry.k).reshape(entry.codes)
        if str(weight.dtype) != f"torch.{entry.dtype}":
            raise ValueError(
                f"it was saved as {entry.dtype} and the model is {weight.dtype}; "
                f"convert the model with .to(torch.{entry.dtype}) first"
            )
        small = CodebookWeight(
            codes=codes.to(weight.device),
            codebooks=codebooks.to(weight.device),
            scale=None if scale is None else scale.to(weight.device),
            scheme=parse_scheme(entry.scheme),
            shape=tuple(entry.shape),
            dtype=weight.dtype,
        )
        layer = kind(source, small)
    except (ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: layer {name!r}: {error}") from error
    return layer


def _load_rest(
    path: str | os.PathLike[str], model: nn.Module, header: Header, tensors: Mapping[str, Tensor]
) -> None:
    done = {_join(name, leaf) for name in header.layers for leaf in ("codes", "codebooks", "scale")}
    done.update(alias for alias, owner in header.aliases.items() if owner in done)
    expected = model.state_dict()
    state = {key: value for key, value in expected.items() if key in done}
    for key in (*tensors, *header.aliases):
        if key in done:
            continue
        value = tensors[header.aliases.get(key, key)]
        if key in expected and expected[key].dtype != value.dtype:
            raise CheckpointError(
                f"{path}: {key!r} was saved as {value.dtype} and the model is "
                f"{expected[key].dtype}; convert the model first"
            )
        state[key] = value
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the model: {error}") from error


def _entry(layer: CodebookLayer) -> LayerEntry:
    small = layer.codebook_weight
    return LayerEntry(
        scheme=str(small.scheme),
        shape=list(small.shape),
        codes=list(small.codes.shape),
        k=small.k,
        dtype=str(small.dtype).removeprefix("torch."),
    )


def _stored(layer: CodebookLayer | None, leaf: str, value: Tensor) -> Tensor:
    value = value.detach()
    if layer is not None and leaf == "codes":
        return pack(value, layer.codebook_weight.k)
    if layer is not None and leaf in ("codebooks", "scale"):
        return value.to(layer.scheme.torch_codebook_dtype)
    return value


def _join(name: str, leaf: str) -> str:
    return f"{name}.{leaf}" if name else leaf


def _checksum(value: Tensor) -> int:
    # Dtype and shape too: the same bytes mean something else with others.
    kind = zlib.crc32(f"{value.dtype}{list(value.shape)}".encode())
    return zlib.crc32(value.contiguous().flatten().view(torch.uint8).numpy().data, kind)


def _write_atomically(path: Path, data: bytes) -> None:
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)
