"""A model as exporters take it: coded weights are ordinary parameters, known by their names.

What reads whole weights gets the decoded one, which the file of a format then puts codes in the
place of. Tables of embeddings stay codes: only the rows that are asked for are ever decoded.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace

import torch
from torch import nn

from vq_plugin.model_copy import HOOKS, copy_model
from vq_plugin.nn import (
    CodebookEmbedding,
    CodebookLayer,
    CodedParameter,
    CodedWeight,
    View,
    coded_parameters,
    coded_weights,
)
from vq_plugin.nn.graphs import graph_hint
from vq_plugin.nn.slots import shown
from vq_plugin.replace import put_parameter
from vq_plugin.rounding import round_centers
from vq_plugin.select import check_model


@dataclass(frozen=True)
class Decoded:
    """A parameter of a plain model that stands for a coded weight.

    Attributes:
        coded: What the weight is decoded from.
        view: Between the parameter and the weight.
        layer: What messages call it.
    """

    coded: CodedWeight
    view: View
    layer: str


@dataclass(frozen=True)
class PlainModel:
    """A model whose coded weights are parameters.

    Attributes:
        model: A copy in eval mode; nothing of it is the original's.
        decoded: Parameters with the values of decoded weights, by their names.
        tables: Layers that look rows of codes up, by their names. Their codes are the buffer
            ``_codes`` beside ``codebooks`` and ``scale``, which hold the values of a file.
        kept: Layers that stay what they are, by their names; with buffers and values as tables.
    """

    model: nn.Module
    decoded: dict[str, Decoded]
    tables: dict[str, CodedWeight]
    kept: dict[str, CodedWeight]


def plain_model(
    model: nn.Module,
    *,
    tables: bool,
    keep: Callable[[CodebookLayer], bool] = lambda _: False,
    decode: Collection[str] = (),
) -> PlainModel:
    """A copy of a model whose coded weights are parameters.

    Args:
        model: It is not changed.
        tables: Whether embeddings go on looking up rows of codes.
        keep: The layers that stay what they are.
        decode: Names of layers whose weight is a parameter in any case.

    Returns:
        The copy. Weights that share codes are one parameter, where they have one shape.

    Raises:
        TypeError: If ``model`` is no module.
        ValueError: If it has no coded weights, as a graph that torch exported, or int8 layers of
            torch.ao, or is not on the CPU.
    """
    check_compressed(model)
    devices = {str(p.device) for p in model.parameters() if not p.is_cpu}
    if devices:
        raise ValueError(f"the model is on {', '.join(sorted(devices))}: move it to the CPU first")
    with torch.inference_mode(False), torch.no_grad():
        copied = copy_model(model, {})
        for module in copied.modules():
            module.training = False
        plain = PlainModel(copied, {}, {}, {})
        shared: dict[object, nn.Parameter] = {}
        for name, module in list(copied.named_modules()):
            if isinstance(module, CodebookLayer):
                if name in decode:
                    plain.decoded[join(name, "weight")] = _replaced(module, name, shared)
                elif keep(module):
                    plain.kept[name] = _as_stored(module)
                elif tables and type(module) is CodebookEmbedding:
                    plain.tables[name] = _as_stored(module)
                else:
                    plain.decoded[join(name, "weight")] = _replaced(module, name, shared)
            elif found := coded_parameters(module):
                plain.decoded.update(_as_parameters(module, name, found, shared))
    return plain


def check_compressed(model: nn.Module) -> None:
    """``TypeError`` for what is no module, ``ValueError`` without coded weights, or beside int8."""
    check_model(model)
    if not coded_weights(model):
        # What torch has exported may well be compressed, but its layers are gone.
        raise ValueError(
            graph_hint(model)
            or "the model has no codebook weights: compress it first, with vq.compress or vq.tune"
        )
    for name, module in model.named_modules():
        where = type(module).__module__
        if where.startswith("torch.ao.nn.") and ".quantized." in where:
            raise ValueError(
                f"layer {shown(name)} is of torch.ao's int8, whose packed weights no program of "
                "torch.export holds: leave such layers float, or mix by torchao's PT2E"
            )


def join(module: str, name: str) -> str:
    """The name of what a module has, or the model itself."""
    return f"{module}.{name}" if module else name


def _frozen(layer: CodebookLayer) -> CodedWeight:
    """What a layer's weight is decoded from, although the layer itself becomes another."""
    coded = CodedWeight(layer.codebook_weight, trains=False)
    coded.codebooks = layer.codebooks
    coded._padding, coded._zero_row = layer._padding, layer._zero_row
    return coded


def _once(shared: dict[object, nn.Parameter], decoded: Decoded, value: object) -> nn.Parameter:
    """One parameter for all weights of the same codes, view and padding."""
    assert isinstance(value, nn.Parameter)
    coded = decoded.coded
    padding = coded._padding if coded._zero_row else None
    return shared.setdefault((id(coded.codebooks), decoded.view, padding), value)


def _as_parameters(
    module: nn.Module,
    name: str,
    found: Mapping[str, CodedParameter],
    shared: dict[object, nn.Parameter],
) -> dict[str, Decoded]:
    """Has a module the decoded weights as parameters, whose full names are returned."""
    decoded = {}
    for parameter, coded in found.items():
        each = Decoded(coded, coded.view, shown(join(name, parameter)))
        put_parameter(module, parameter, coded.view.restore(coded._weight().detach()))
        module._parameters[parameter] = _once(shared, each, module._parameters[parameter])
        decoded[join(name, parameter)] = each
    if isinstance(module, nn.RNNBase):
        module._init_flat_weights()
    return decoded


def _replaced(layer: CodebookLayer, name: str, shared: dict[object, nn.Parameter]) -> Decoded:
    """What the weight is decoded from of a layer that becomes its float layer."""
    decoded = Decoded(_frozen(layer), View.whole(layer.weight_shape), shown(name))
    _as_float(layer)
    layer._parameters["weight"] = _once(shared, decoded, layer._parameters["weight"])
    return decoded


def _as_float(layer: CodebookLayer) -> None:
    """Makes a codebook layer its float layer, with all else that it has: hooks, attributes."""
    plain = layer.to_float()
    held = {**vars(layer), **vars(plain)}
    for store in ("_parameters", "_buffers", "_modules", *HOOKS):
        held[store] = getattr(layer, store).copy()
        held[store].update(getattr(plain, store))
    for coded in ("codebooks", "scale"):
        del held["_parameters"][coded]
    held["training"] = False
    layer.__class__ = type(plain)  # type: ignore[assignment]
    vars(layer).clear()
    vars(layer).update(held)


def _as_stored(layer: CodebookLayer) -> CodedWeight:
    """Has a layer read what a file holds, which it rounds no more."""
    stored = _frozen(layer)
    dtype = layer.codebooks.dtype
    layer.codebooks.data = round_centers(layer.codebooks, layer.scheme.codebook_dtype).to(dtype)
    if layer.scale is not None:
        layer.scale.data = layer._rounded_scale(layer.scale).to(dtype)
    layer.scheme = replace(layer.scheme, codebook_dtype="float32")
    layer._settings = (*layer._settings[:-1], layer.scheme.torch_codebook_dtype)
    codes = vars(layer).pop("_codes")
    if isinstance(layer, CodebookEmbedding):
        # Formats have integers of their own width.
        codes, layer._bits = layer._unpacked(codes), 8
    layer.register_buffer("_codes", codes)
    return stored
