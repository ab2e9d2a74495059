"""What a file names in the fresh float model that it is loaded into."""

from __future__ import annotations

import difflib
from collections.abc import Mapping

from torch import nn
from torch.nn.modules.conv import _ConvNd

from vq_plugin.factorize import (
    FactorizedLayer,
    KernelBasis,
    LowRank,
    first_channels,
    parse_factor,
)
from vq_plugin.factorize.place import empty_layer, place, split_for
from vq_plugin.format.header import Header, join
from vq_plugin.nn import Slot
from vq_plugin.nn.graphs import graph_hint
from vq_plugin.select import slots_by_any_name


def narrowed(model: nn.Module, header: Header) -> nn.Module:
    """A model whose layers have as few outputs as in a file, where others just take these.

    Which ones stay does not matter: values are yet to come. The model itself where nothing is so.
    """
    counts: dict[str, int] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | _ConvNd | FactorizedLayer):
            ends = [join(name, cls.parts[1]) for cls in (LowRank, KernelBasis)]
            count = max(_outputs(header, each) for each in (name, *ends))
            outputs = getattr(module, "out_features", 0) or module.out_channels
            if 0 < count < int(outputs):  # type: ignore[arg-type]
                counts[name] = count
    return first_channels(model, counts) if counts else model


def _outputs(header: Header, name: str) -> int:
    """Rows of a weight in a file, 0 if it has none of that name, or sees it in another order."""
    entry, whole = header.layers.get(name), header.tensors.get(join(name, "weight"))
    if entry is not None:
        return entry.shape[0] if entry.view is None else 0
    return 0 if whole is None or len(whole.shape) < 2 else whole.shape[0]


def refactorized(model: nn.Module, header: Header) -> nn.Module:
    """A model whose layers are factorized as a file says, with weights that are yet to come.

    The model itself where it has them so already. ``ValueError`` names a layer that cannot be.
    """
    if not header.factors:
        return model
    slots = slots_by_any_name(model)
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[Slot, FactorizedLayer] = {}
    for name, text in header.factors.items():
        there = modules.get(name)
        if isinstance(there, FactorizedLayer):
            if str(there.factor) != text:
                raise ValueError(
                    f"layer {name!r} is {text} in the file and {there.factor} in the model"
                )
            continue
        slot = slot_of(name, slots, model)
        try:
            factor = parse_factor(text)
        except ValueError as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        split = split_for(slot, factor)
        if isinstance(split, str):
            raise ValueError(f"layer {name!r}: {split}")
        if factor.channels is None:
            raise ValueError(f"layer {name!r}: {text} has no rank")
        layers[slot] = empty_layer(slot, factor, split)
    if not layers:
        return model
    model = place(model, layers, {})
    _tie(model, header)
    return model


def _tie(model: nn.Module, header: Header) -> None:
    """Layers share the factors that their file has once."""
    parts: dict[str, tuple[FactorizedLayer, str]] = {}
    for name in header.factors:
        layer = model.get_submodule(name)
        assert isinstance(layer, FactorizedLayer)
        for part in layer.parts:
            parts[join(name, f"{part}.weight")] = layer, part
    for alias, to in header.aliases.items():
        if alias in parts and to in parts:
            (layer, part), (other, same) = parts[alias], parts[to]
            one, two = layer.get_submodule(part), other.get_submodule(same)
            if one.weight.shape != two.weight.shape:
                raise ValueError(f"{alias!r} and {to!r} are no weights of one shape")
            one.weight = two.weight


def is_compiled(name: str) -> bool:
    """Whether a module's name is of a model, or a part of one, that torch.compile has wrapped."""
    return "_orig_mod" in name.split(".")


def rewrapped(name: str) -> set[str]:
    """What a module is called in the same model with or without a wrapper as DataParallel is."""
    return {name.removeprefix("module."), f"module.{name}"} - {name}


def slot_of(name: str, slots: Mapping[str, Slot], model: nn.Module) -> Slot:
    """The slot that a file names; ``ValueError`` says why the model may not have it."""
    if name in slots:
        return slots[name]
    modules = dict(model.named_modules(remove_duplicate=False))
    hint = next(filter(None, map(graph_hint, modules.values())), None)
    if hint is not None:
        raise ValueError(f"the model has no layer {name!r}: {hint}")
    if name in modules:
        raise ValueError(
            f"layer {name!r} of the model is a {type(modules[name]).__name__}, which has no "
            "slot; give load() a fresh float model"
        )
    if "_orig_mod" in modules:
        raise ValueError("the model is compiled: give load() model._orig_mod, compile the result")
    if (compiled := next(filter(is_compiled, modules), None)) is not None and not is_compiled(name):
        part = compiled.partition("._orig_mod")[0]
        raise ValueError(
            f"{part!r} of the model is compiled: give load() the model as it was before, with "
            f"model.{part}._orig_mod in its place, and compile the result"
        )
    for known in sorted(rewrapped(name)):
        if known in slots:
            raise ValueError(
                f"the model has no layer {name!r} but {known!r}: one of the two is wrapped, as by "
                "DataParallel; save, and load into, what such a wrapper has as .module"
            )
    near = difflib.get_close_matches(name, slots, n=3)
    hint = f"; the nearest names are {', '.join(near)}" if near else ""
    raise ValueError(f"the model has no layer {name!r}{hint}")
