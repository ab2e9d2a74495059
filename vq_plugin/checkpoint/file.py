"""Compressed models as safetensors files: nothing is ever pickled.

The file holds the whole ``state_dict``. Codes are packed to their exact width, or entropy-coded
where that is smaller. Codebooks and scales keep the scheme's ``codebook_dtype``, int8 codebooks
the exponents of their steps beside them. Everything else keeps its own.
"""

from __future__ import annotations

import copy
import difflib
import math
import os
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from vq_plugin.atomic import write_atomically
from vq_plugin.checkpoint import container
from vq_plugin.checkpoint.header import (
    CheckpointError,
    Header,
    LayerEntry,
    join,
)
from vq_plugin.checkpoint.rest import LEAVES, Rest, check_rest, stored_rest
from vq_plugin.checkpoint.size import may_be_coded
from vq_plugin.codebook import CodebookWeight, matrix_view
from vq_plugin.coding import entropy
from vq_plugin.coding.bits import pack, unpack
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.rounding import from_int8, to_int8
from vq_plugin.schemes import Axis, Scheme, parse_scheme

# One tensor more of a codebook layer, beside int8 codebooks.
_EXPONENTS = "exponents"


def save(model: nn.Module, path: str | os.PathLike[str], *, rest: Rest | None = None) -> int:
    """Writes a compressed model to a file, in one atomic step.

    Args:
        model: A model with codebook layers.
        path: Where to; an existing file is replaced.
        rest: ``"float16"`` rounds what is not of a codebook (biases, norms, layers left as they
            are) from float32 or float64, but for tensors with a value beyond its range. Loading
            gives them their dtype back. ``None`` keeps them as they are.

    Returns:
        Bytes of the file.

    Raises:
        ValueError: If the model has no codebook layer, or state that is not a tensor, or int8
            centers that are NaN or infinite, or ``rest`` is none of the above.

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
    check_rest(rest)
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
        layer = every_name.get(name)
        # Codes are unpacked for every name: layers are tied if they share their codebooks.
        own = layer.codebooks if layer is not None and leaf == "codes" else value
        owner = first.setdefault((id(own), leaf == "codes"), key)
        if owner != key:
            header.aliases[key] = owner
            if layer is not None and leaf == "codebooks" and _is_int8(layer.scheme):
                there = join(owner.rpartition(".")[0], _EXPONENTS)
                header.aliases[join(name, _EXPONENTS)] = there
            continue
        if layer is not None and leaf in LEAVES:
            parts = _stored(layer, name, leaf, value.detach(), header.coded)
        else:
            parts = {key: stored_rest(value.detach(), rest)}
            if parts[key].dtype != value.dtype:
                header.rounded[key] = "float32" if value.dtype is torch.float32 else "float64"
        # A copy: safetensors refuses tensors that share memory.
        tensors.update((k, part.cpu().contiguous().clone()) for k, part in parts.items())
    ways = {coding.along for coding in header.coded.values()}
    version = 4 if "class" in ways else 2 if ways or header.rounded else 1
    header = replace(header, format=version)
    data = container.to_bytes(header, tensors)
    write_atomically(Path(path), data)
    return len(data)


def load(path: str | os.PathLike[str], model: nn.Module, *, part: str = "") -> nn.Module:
    """Rebuilds a compressed model from a file and a fresh float model.

    Args:
        path: A file that :func:`save` wrote.
        model: Float model of the same architecture and dtype; its values do not matter and it is
            not changed.
        part: Name of a layer or of another module: ``model`` is that module, and only its tensors
            are read and decoded.

    Returns:
        A new model with codebook layers, on the devices and in the training mode of ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged, of another kind or version, or names layers or
            tensors that the model lacks.

    Example:
        >>> import tempfile
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Sequential(nn.Linear(64, 32), nn.Linear(32, 64)), vq.KM(k=8))
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     size = vq.save(small, f"{folder}/model.vq")
        ...     layer = vq.load(f"{folder}/model.vq", nn.Linear(32, 64), part="1")
        >>> bool(torch.equal(layer.weight, small[1].weight))
        True
    """
    header, tensors = read(path, part)
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
        key = header.aliases.get(join(name, "codes"))
        if key is not None:
            owner = replacements.get(key.rpartition(".")[0])
            if owner is None or not _fits(layer, owner):
                raise CheckpointError(f"{path}: layer {name!r} cannot be tied to {key!r}")
            layer.share(owner)
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
    header, tensors = container.read(path)
    return header, {key: value.nbytes for key, value in tensors.items()}


def read(path: str | os.PathLike[str], part: str = "") -> tuple[Header, dict[str, Tensor]]:
    """The header and the tensors of a file, checked, rounded ones in the dtype of the model.

    Args:
        path: A file that :func:`save` wrote.
        part: Name of a module: nothing else is read, and names start below it.

    Raises:
        FileNotFoundError: If there is no such file.
        CheckpointError: If the file is damaged or of another kind or version.
    """
    header, tensors = container.read(path, part)
    for key, dtype in header.rounded.items():
        if tensors[key].dtype != torch.float16:
            raise CheckpointError(f"{path}: tensor {key!r} is not of float16, as the header says")
        tensors[key] = tensors[key].to(getattr(torch, dtype))
    return header, tensors


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
        key = join(name, leaf)
        return tensors.get(header.aliases.get(key, key))

    weight = source.weight
    assert isinstance(weight, Tensor)
    packed, codebooks, scale = stored("codes"), stored("codebooks"), stored("scale")
    try:
        if packed is None or codebooks is None:
            raise ValueError("its codes or codebooks are missing")
        if str(weight.dtype) != f"torch.{entry.dtype}":
            raise ValueError(
                f"it was saved as {entry.dtype} and the model is {weight.dtype}; "
                f"convert the model with .to(torch.{entry.dtype}) first"
            )
        scheme = parse_scheme(entry.scheme)
        if _is_int8(scheme):
            exponents = stored(_EXPONENTS)
            if exponents is None:
                raise ValueError("the exponents of its int8 codebooks are missing")
            codebooks = from_int8(codebooks, exponents)
        if scheme.scale == "row" and scale is None:
            raise ValueError("its row scales are missing")
        codes = _codes(entry, header.coding(name), packed, codebooks, weight, scheme.view_axis)
        small = CodebookWeight(
            codes=codes.to(weight.device),
            codebooks=codebooks.to(weight.device),
            scale=None if scale is None else scale.to(weight.device),
            scheme=scheme,
            shape=tuple(entry.shape),
            dtype=weight.dtype,
        )
        layer = kind(source, small)
    except (ValueError, RuntimeError, IndexError, TypeError, AttributeError) as error:
        raise CheckpointError(f"{path}: layer {name!r}: {error}") from error
    return layer


def _is_int8(scheme: Scheme) -> bool:
    return scheme.codebook_dtype == "int8"


def _fits(layer: CodebookLayer, owner: CodebookLayer) -> bool:
    one, two = layer.codebook_weight, owner.codebook_weight
    return (one.shape, one.scheme) == (
        two.shape,
        two.scheme,
    ) and one.codebooks.shape == two.codebooks.shape


def _codes(
    entry: LayerEntry,
    coding: entropy.Coding | None,
    stored: Tensor,
    codebooks: Tensor,
    weight: Tensor,
    axis: Axis,
) -> Tensor:
    """The codes, after it is sure that so many are wanted."""
    if tuple(entry.shape) != tuple(weight.shape):
        raise ValueError(
            f"it was saved with a weight of shape {tuple(entry.shape)} "
            f"and the model's is {tuple(weight.shape)}"
        )
    if codebooks.dim() != 5 or codebooks.numel() == 0 or codebooks.shape[3] != entry.k:
        raise ValueError(
            f"codebooks of shape {tuple(codebooks.shape)} are not of {entry.k} centers"
        )
    rows, length = matrix_view(weight.detach().to("meta"), axis).shape
    shape = (codebooks.shape[0], rows, -(-length // codebooks.shape[4]))
    # Packed codes of some bits are never more than the file is long.
    few = may_be_coded(math.prod(shape), weight.numel()) or (coding is None and entry.k > 1)
    if tuple(entry.codes) != shape or not few:
        raise ValueError(f"codes of shape {tuple(entry.codes)} do not fit the codebooks")
    data = stored.numpy()
    if coding is not None:
        return torch.from_numpy(entropy.decode(data, coding, shape, entry.k))
    return torch.from_numpy(unpack(data, math.prod(shape), entry.k).reshape(shape))


def _load_rest(
    path: str | os.PathLike[str], model: nn.Module, header: Header, tensors: Mapping[str, Tensor]
) -> None:
    done = {join(name, leaf) for name in header.layers for leaf in LEAVES}
    done.update(
        join(name, _EXPONENTS)
        for name, entry in header.layers.items()
        if _is_int8(parse_scheme(entry.scheme))
    )
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


def _stored(
    layer: CodebookLayer, name: str, leaf: str, value: Tensor, coded: dict[str, entropy.Coding]
) -> dict[str, Tensor]:
    """What the file keeps of a tensor, by name; how codes were coded goes into ``coded``."""
    key = join(name, leaf)
    if leaf == "codes":
        k = layer.codebook_weight.k
        few = may_be_coded(value.numel(), math.prod(layer.weight_shape))
        array = value.cpu().numpy()
        found = entropy.encode(array, k) if few else None
        if found is None:
            return {key: torch.from_numpy(pack(array, k))}
        coded[name], data = found
        return {key: torch.from_numpy(data)}
    if leaf == "codebooks" and _is_int8(layer.scheme):
        try:
            integers, exponents = to_int8(value)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        return {key: integers, join(name, _EXPONENTS): exponents}
    return {key: value.to(layer.scheme.torch_codebook_dtype)}
