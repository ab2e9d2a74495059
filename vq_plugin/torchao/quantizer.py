"""The quantizer for ``prepare_pt2e`` and ``prepare_qat_pt2e``."""

from __future__ import annotations

import warnings
from collections.abc import Collection

from torch.fx import GraphModule
from torch.nn import Parameter
from torchao.quantization.pt2e.quantizer import QuantizationSpec, Quantizer
from torchao.quantization.pt2e.quantizer.quantizer import Q_ANNOTATION_KEY

from vq_plugin.arguments import check_flag, check_whole
from vq_plugin.hosting.plan import plans
from vq_plugin.select import NoMatchError, Schemes, as_patterns, asks_for_all, leaves, slots_by_name
from vq_plugin.slot_fit import check_slot
from vq_plugin.torchao.graph import GraphLayer, float_twin, graph_layers
from vq_plugin.torchao.observers import (
    DTYPE,
    CodebookFakeQuantize,
    InputObserver,
    Site,
    WeightObserver,
)
from vq_plugin.torchao.versions import Annotation

_REACH = (
    "PT2E gets codes for Linear, convolutions and Embedding with weights that nothing else reads"
)


class VQQuantizer(Quantizer):  # type: ignore[misc]
    """Codebooks for Linear, convolutions and Embedding of an exported program.

    ``convert_pt2e`` then gives a graph that calls codebook layers: export it again to save,
    compile or package it. In a ``ComposableQuantizer`` it goes first, so that others leave its
    layers alone. Inputs that the prepared graph is run with calibrate the fits, as the
    ``calibration=`` of :func:`vq_plugin.compress` does; without any, weights are fitted by
    themselves.

    Args:
        schemes: One scheme for every layer that can take it, or patterns to schemes, as in
            :func:`vq_plugin.compress`; names are those of the float model.
        is_qat: Whether it is for ``prepare_qat_pt2e``: layers then train with their codebooks.
        seed: Seed of the fits.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: From ``prepare_pt2e``, if a pattern matches nothing in the graph (the message
            has the nearest names), a layer cannot be compressed or has another quantizer's
            annotation, or layers that share a weight would get different schemes.

    Warns:
        UserWarning: If all layers are asked for and a weight of more than 1 % of the model is one
            that a graph cannot hold as codes.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e
        >>> model = torch.nn.Sequential(torch.nn.Linear(64, 32), torch.nn.ReLU()).eval()
        >>> batch = torch.randn(8, 64)
        >>> program = torch.export.export(model, (batch,)).module()
        >>> prepared = prepare_pt2e(program, VQQuantizer(vq.PQ(k=16, dim=4)))
        >>> _ = prepared(batch)
        >>> converted = convert_pt2e(prepared)
        >>> type(converted.get_submodule("0")).__name__
        'CodebookLinear'
        >>> again = torch.export.export(converted, (batch,))
    """

    def __init__(self, schemes: Schemes, *, is_qat: bool = False, seed: int = 0) -> None:
        super().__init__()
        as_patterns(schemes)
        check_whole("seed", seed)
        check_flag("is_qat", is_qat)
        self.schemes, self.is_qat, self.seed = schemes, is_qat, seed

    def annotate(self, model: GraphModule) -> GraphModule:
        """Marks the edges of the chosen layers."""
        if any(str(node.target).startswith("vq.") for node in model.graph.nodes):
            raise ValueError(
                "the program holds codes already: give prepare_pt2e an export of the float model"
            )
        layers = graph_layers(model)
        twin = float_twin(model, layers)
        try:
            chosen = plans(twin, self.schemes, self.seed)
        except NoMatchError as error:
            raise _out_of_reach(error, model, layers) from None
        for slot in slots_by_name(twin, chosen).values():
            check_slot(slot)
        nodes = [layer for layer in layers if layer.name in chosen]
        for layer in nodes:
            if Q_ANNOTATION_KEY in layer.node.meta:
                raise ValueError(
                    f"layer {layer.name!r} has the annotation of another quantizer: give "
                    "VQQuantizer to ComposableQuantizer as the first, or leave the layer with "
                    f"{{{layer.name!r}: None}}"
                )
        sites = {
            name: Site(place, name, twin.get_submodule(name), plan)
            for place, (name, plan) in enumerate(chosen.items())
        }
        for layer in nodes:
            site = sites[layer.name]
            observer = CodebookFakeQuantize if self.is_qat else WeightObserver
            inputs = None if self.is_qat else _spec(InputObserver, site)
            # In this order: where a batch norm follows, the host goes by it.
            layer.node.meta[Q_ANNOTATION_KEY] = Annotation(
                input_qspec_map={layer.input: inputs, layer.weight: _spec(observer, site)},
                # Neighbours that read the same tensor have observers of their own.
                allow_implicit_sharing=False,
                _annotated=True,
            )
        if asks_for_all(self.schemes):
            self._warn_of_left(model, [str(layer.weight.target) for layer in nodes])
        return model

    def _warn_of_left(self, model: GraphModule, chosen: Collection[str]) -> None:
        weights = _weights(model)
        total = sum(value.nbytes for value in weights.values())
        left = [
            f"{target} ({value.nbytes:,} bytes)"
            for target, value in weights.items()
            if target not in chosen
            and value.nbytes > total / 100
            and not any(leaves(self.schemes, n) for n in (target, target.rpartition(".")[0]))
        ]
        if left:
            warnings.warn(
                f"weights above 1 % of the model stay in float: {', '.join(left)}; {_REACH}",
                stacklevel=4,
            )

    def validate(self, model: GraphModule) -> None:
        """Nothing: what cannot be done was an error before."""


def _weights(model: GraphModule) -> dict[str, Parameter]:
    """The weights that a graph reads, by their names."""
    read = {str(node.target) for node in model.graph.find_nodes(op="get_attr")}
    named = model.named_parameters(remove_duplicate=False)
    return {target: value for target, value in named if target in read and value.dim() > 1}


def _out_of_reach(
    error: NoMatchError, model: GraphModule, layers: Collection[GraphLayer]
) -> NoMatchError:
    """The same error, unless the pattern means weights that the graph has, but not for codes."""
    served = {str(layer.weight.target) for layer in layers}
    meant = [
        f"{target} ({value.nbytes:,} bytes)"
        for target, value in _weights(model).items()
        if target not in served
        and (not layers or error.pattern in (target, target.rpartition(".")[0]))
    ]
    if not meant:
        return error
    pattern = error.pattern.__name__ if isinstance(error.pattern, type) else repr(error.pattern)
    text = f"{pattern} matches nothing: {_REACH}, not for {', '.join(meant)}"
    return NoMatchError(error.pattern, f"{text}: quantize_ and vq.compress take such layers")


def _spec(observer: type, site: Site) -> QuantizationSpec:
    return QuantizationSpec(DTYPE, observer.with_args(site=site))  # type: ignore[attr-defined]
