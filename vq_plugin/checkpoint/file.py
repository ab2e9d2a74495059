"""Compressed models as safetensors files: nothing is ever pickled.

The file holds the whole ``state_dict``. Codes are packed to their exact width, or entropy-coded
where that is smaller. Codebooks and scales keep the scheme's ``codebook_dtype``, int8 codebooks
the exponents of their steps beside them. Everything else keeps its own.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from vq_plugin.arguments import brief
from vq_plugin.atomic import write_atomically
from vq_plugin.checkpoint.fresh import is_compiled, narrowed, refactorized, rewrapped, slot_of
from vq_plugin.checkpoint.opened import tensor_of, torch_layer
from vq_plugin.checkpoint.rest import Rest, check_rest, kept_rest
from vq_plugin.checkpoint.state import load_state
from vq_plugin.checkpoint.weights import SavedWeight, saved_weights
from vq_plugin.codebook import CodebookWeight
from vq_plugin.coding import entropy
from vq_plugin.coding.bits import pack
from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize import FactorizedLayer
from vq_plugin.folding import fold, norm_pairs
from vq_plugin.format.bounds import may_be_coded
from vq_plugin.format.container import Container, to_bytes
from vq_plugin.format.header import DTYPES, CheckpointError, Entry, EntryView, Header, Stored, join
from vq_plugin.format.weights import has_coded_scales, read_codes, read_scales
from vq_plugin.nn import Slot, View
from vq_plugin.replace import assemble
from vq_plugin.rounding import stored_scales, to_int8
from vq_plugin.schemes import Scheme, parse_scheme
from vq_plugin.schemes.registry import SCHEMES
from vq_plugin.select import check_model, slots_by_any_name

# Names in a message.
_SHOWN = 20

_Parts = dict[str, tuple[Stored, NDArray[np.uint8]]]


def save(model: nn.Module, path: str | os.PathLike[str], *, rest: Rest | None = None) -> int:
    """Writes a compressed model to a file, in one atomic step.

    Args:
        model: A model with codebook layers.
        path: Where to; an existing file is replaced.
        rest: ``"float16"`` rounds what is not of a codebook (biases, norms, layers left as they
            are) from float32 or float64, but for tensors with a value beyond its range.
            ``"int8"`` does so, too, but that parameters of one dimension (biases, scales of norms)
            are off by up to 1/127 of their largest value, at a byte each. Of the two biases of an
            ``nn.LSTM`` or ``nn.RNN`` both keep the sum, as the first, and zeros. Loading gives
            tensors their dtype back. ``None`` keeps them as they are.

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
    content = file_bytes(model, rest)
    write_atomically(Path(path), content)
    return len(content)


@cpu_by_default()
def file_bytes(model: nn.Module, rest: Rest | None) -> bytes:
    """The content of the file that :func:`save` writes."""
    check_rest(rest)
    check_model(model)
    coded = list(saved_weights(model))
    if not coded:
        raise ValueError("the model has no coded weight; compress it first")
    header, tensors = Header(), _Parts()
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, FactorizedLayer):
            header.factors[name] = str(module.factor)
    # Tensors are tied where they are one object, coded weights where they share their codebooks.
    first: dict[int, str] = {}
    own = {key for each in coded for key in each.keys}
    keep = kept_rest(model, rest)
    for key, value in model.state_dict(keep_vars=True).items():
        if not isinstance(value, Tensor):
            raise ValueError(
                f"{key!r} holds a {type(value).__name__}, which a file without pickle cannot keep"
            )
        if value.is_meta:
            raise ValueError(f"{key!r} is on the meta device: there are no values to save")
        if problem := _unkept(value):
            raise ValueError(f"{key!r} {problem}")
        if key in own:
            continue
        if first.setdefault(id(value), key) != key:
            header.aliases[key] = first[id(value)]
            continue
        kept = keep(value)
        kind, data = _stored(key, kept.tensor)
        rounded = _name(value.dtype) if kept.tensor.dtype != value.dtype else None
        tensors[key] = kind._replace(rounded=rounded, exponent=kept.exponent), data
    for each in coded:
        books = id(each.holder.codebooks)
        if first.setdefault(books, each.name) != each.name:
            header.aliases[each.name] = first[books]
            continue
        header.layers[each.name], parts = _coded(each)
        tensors |= parts
    return to_bytes(header, tensors)


@cpu_by_default()
def load(path: str | os.PathLike[str], model: nn.Module, *, part: str = "") -> nn.Module:
    """Rebuilds a compressed model from a file and a fresh float model.

    Args:
        path: A file that :func:`save` wrote.
        model: Float model of the same architecture and dtype; its values do not matter and it is
            not changed. Layers that were factorized before they were coded are whole in it, or
            factorized in the same way; batch norms that the file's model had folded into the layers
            before are folded here, too. Channels that were taken away before are still in it, or
            not; where ``torch.fx`` cannot trace it they must not.
        part: Name of a layer or of another module: ``model`` is that module, and only its tensors
            are read and decoded.

    Returns:
        A new model with codebook layers, on the devices and in the training mode of ``model``.

    Raises:
        FileNotFoundError: If there is no such file.
        TypeError: If ``part`` is no name.
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
    if not isinstance(part, str):
        # 0 would be the whole model.
        raise TypeError(f"part is a name, such as 'features.3', got {brief(part)}")
    file = Container(path, part)
    check_model(model)
    lacking = (name for name, tensor in model.state_dict().items() if _is_meta(tensor))
    if (name := next(lacking, None)) is not None:
        raise CheckpointError(
            f"{path}: {name!r} of the model is on the meta device and would stay there: make it on "
            "the CPU, or give load() model.to_empty(device='cpu')"
        )
    model = _as_folded(model, file)
    weights: dict[str, CodebookWeight] = {}
    ties: dict[str, str] = {}
    try:
        model = refactorized(narrowed(model, file.header), file.header)
        slots = slots_by_any_name(model)
        for name, stored in file.header.weights():
            slot = slot_of(name, slots, model)
            try:
                _check_fit(file.header.layers[stored], slot, slots.get(stored, slot).view)
                if name == stored:
                    weights[name] = _weight(file, name, slot.value)
                else:
                    ties[name] = stored
            except CheckpointError:
                raise
            except (ValueError, RuntimeError, TypeError, AttributeError) as error:
                raise ValueError(f"layer {name!r}: {error}") from error
        restored = assemble(model, weights, ties)
    except CheckpointError:
        raise
    except ValueError as error:
        raise CheckpointError(f"{path}: {error}") from error
    _load_rest(restored, file)
    return restored


def _as_folded(model: nn.Module, file: Container) -> nn.Module:
    """The model without the batch norms that the file's had folded into the layers before."""
    kept = {name.rpartition(".")[0] for name, _ in file.header.others()}
    gone = {
        name
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.track_running_stats and name not in kept
    }
    # Of a wrapped model all names are others; its layers say so.
    if not gone or any(is_compiled(name) or kept & rewrapped(name) for name in gone):
        return model
    try:
        pairs = norm_pairs(model)
    except ValueError as error:
        names = _listed(sorted(gone))
        raise CheckpointError(
            f"{file.path}: the file lacks the batch norms {names}, which seem to be folded into "
            f"the layers before; {error}, and give load() the folded model"
        ) from error
    return fold(model, {name: pairs[name] for name in pairs if name in gone})


def _check_fit(entry: Entry, slot: Slot, view: View) -> None:
    """Makes sure that the weight of an entry is wanted, before anything of it is believed.

    ``view`` is that of the slot which the file has it for; of those that share it, the first.
    """
    source = slot.value
    if tuple(source.shape) != view.parameter_shape:
        view = slot.view
    if entry.dtype != _name(source.dtype):
        raise ValueError(
            f"it was saved as {entry.dtype} and the model is {source.dtype}; "
            f"convert the model with .to(torch.{entry.dtype}) first"
        )
    if entry.shape != view.shape:
        raise ValueError(
            f"it was saved with a weight of shape {entry.shape} and the model's is {view.shape}"
        )
    if entry.view != _view(None if view.plain else view):
        raise ValueError(f"it was saved with the view {entry.view} and the model's is {view}")


def _weight(file: Container, name: str, source: Tensor) -> CodebookWeight:
    entry = file.header.layers[name]
    scheme = _scheme(entry.scheme)
    layer = torch_layer(file, name)
    # A model of this shape is there: not as many as a file of its length has, but as it wants.
    coded = has_coded_scales(file, name)
    scale = torch.from_numpy(read_scales(file, name, entry)) if coded else layer.scale
    if scheme.geometry(entry.shape).scaled and scale is None:
        raise ValueError("its row scales are missing")
    if coded and scheme.torch_codebook_dtype != torch.float16:
        raise ValueError(f"its row scales are of float16, which those of {scheme} are not")
    small = CodebookWeight(
        codes=torch.from_numpy(read_codes(file, name, entry)).to(source.device),
        codebooks=layer.codebooks.to(source.device),
        scale=None if scale is None else scale.to(source.device),
        scheme=scheme,
        shape=entry.shape,
        dtype=source.dtype,
    )
    kind = file.header.tensors[join(name, "codebooks")].dtype
    cut = small.geometry
    if (cut.axis, cut.group, cut.codebook_dtype) != (entry.axis, entry.group, kind):
        raise ValueError(f"axis, groups or {kind} codebooks are not those of {scheme}")
    return small


def _is_meta(value: object) -> bool:
    return isinstance(value, Tensor) and value.is_meta


def _scheme(text: str) -> Scheme:
    method = text.partition("(")[0]
    if method not in SCHEMES:
        raise ValueError(
            f"its scheme {method!r} is not registered: import the module that does, by "
            "@vq.register_scheme, before the file is loaded"
        )
    return parse_scheme(text)


def _load_rest(model: nn.Module, file: Container) -> None:
    """Gives a model all that is not of a coded weight."""
    expected = dict[str, Tensor]()
    expected.update(model.named_parameters(remove_duplicate=False))
    expected.update(model.named_buffers(remove_duplicate=False))
    read: dict[str, Tensor] = {}
    state: dict[str, Tensor] = {}
    for name, stored in file.header.others():
        if stored not in read:
            read[stored] = tensor_of(file.header.tensors[stored], file.raw(stored))
        state[name] = value = read[stored]
        if name in expected and expected[name].dtype != value.dtype:
            raise CheckpointError(
                f"{file.path}: {name!r} was saved as {value.dtype} and the model is "
                f"{expected[name].dtype}; convert the model first"
            )
    own = {key for each in saved_weights(model) for key in each.keys}
    try:
        lacking, unknown = load_state(model, state)
    except RuntimeError as error:
        raise CheckpointError(f"{file.path}: does not fit the model: {error}") from error
    lacking = [key for key in lacking if key not in own]
    if lacking or unknown:
        raise CheckpointError(
            f"{file.path}: does not fit the model: the file lacks {_listed(lacking)}, "
            f"the model lacks {_listed(unknown)}"
        )


def _listed(names: list[str]) -> str:
    rest = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return f"{names[:_SHOWN]}{rest}" if names else "nothing"


def _coded(saved: SavedWeight) -> tuple[Entry, _Parts]:
    """What the file says and keeps of a coded weight."""
    name, small = saved.name, saved.holder.codebook_weight
    codes = small.codes.detach().cpu().numpy()
    few = may_be_coded(codes.size, math.prod(small.shape))
    coding, data = (entropy.encode(codes, small.k) if few else None) or (None, pack(codes, small.k))
    parts = {"codes": torch.from_numpy(data), "codebooks": small.codebooks}
    if small.scheme.codebook_dtype == "int8":
        try:
            parts["codebooks"], parts["exponents"] = to_int8(small.codebooks)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
    if small.scale is not None:
        parts["scale"] = stored_scales(small.scale)
    entry = Entry(
        scheme=str(small.scheme),
        shape=tuple(small.shape),
        view=_view(saved.view),
        axis=small.geometry.axis,
        group=small.geometry.group,
        codes=tuple(codes.shape),
        dtype=_name(small.dtype),
        coding=coding,
    )
    return entry, {join(name, leaf): _stored(join(name, leaf), v) for leaf, v in parts.items()}


def _view(view: View | None) -> EntryView | None:
    return None if view is None else (view.parameter_shape, view.split, view.order)


def _unkept(value: Tensor) -> str | None:
    """Why a file, which has values in order, cannot keep a tensor of its kind."""
    if value.is_nested or value.layout is not torch.strided:
        kind = "nested" if value.is_nested else f"of {value.layout}"
        return (
            f"is {kind}, which a file cannot keep: make it dense, or a buffer with persistent=False"
        )
    if is_traceable_wrapper_subclass(value):
        return (
            f"is a {type(value).__name__} of {type(value).__module__.split('.')[0]}, which a file "
            "cannot keep: save the model before it is distributed or quantized, or load the full "
            "tensors of its state_dict into a copy that is not"
        )
    return None


def _stored(name: str, value: Tensor) -> tuple[Stored, Any]:
    """A tensor as the file keeps it; its checksum is yet to come."""
    dtype = _name(value.dtype)
    if dtype not in DTYPES:
        remedy = "; torch.save keeps the state_dict" * dtype.startswith(("qint", "quint"))
        raise ValueError(
            f"{name!r} is of dtype {dtype}, which a file without pickle cannot keep{remedy}"
        )
    data = value.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
    return Stored(dtype, tuple(value.shape), 0), data


def _name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
