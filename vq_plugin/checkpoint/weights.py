"""The coded weights of a model: what a file keeps of them, and how a model gets them back."""

from __future__ import annotations

import copy
import difflib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.format.header import join
from vq_plugin.nn import CodebookLayer, codebook_type


@dataclass(frozen=True)
class CodedWeight:
    """A coded weight of a model.

    Attributes:
        name: Its name in files: that of its module.
        keys: Where the model's ``state_dict`` has its codes, codebooks and scale.
        codebooks: The model's own tensor: weights that share it are tied.
        layer: Where its codes are.
    """

    name: str
    keys: frozenset[str]
    codebooks: Tensor
    layer: CodebookLayer

    def weight(self) -> CodebookWeight:
        """What is saved: its codes are unpacked for that."""
        return self.layer.codebook_weight


def coded_weights(model: nn.Module) -> Iterator[CodedWeight]:
    """The coded weights of a model, tied ones under each of their names."""
    for name, module in model.named_modules(remove_duplicate=False):
        if isinstance(module, CodebookLayer):
            keys = frozenset(join(name, leaf) for leaf in ("codes", "codebooks", "scale"))
            yield CodedWeight(name, keys, module.codebooks, module)


def float_weight(model: nn.Module, name: str) -> Tensor:
    """The float weight that a name of :func:`coded_weights` means in a model without codes.

    Raises:
        ValueError: If there is none that could be coded.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    if name not in modules:
        near = difflib.get_close_matches(name, modules, n=3)
        hint = f"; the nearest names are {', '.join(near)}" if near else ""
        raise ValueError(f"the model has no layer {name!r}{hint}")
    if codebook_type(modules[name]) is None:
        raise ValueError(
            f"layer {name!r} of the model is a {type(modules[name]).__name__}, which has no "
            "codebook layer; give load() a fresh float model"
        )
    weight = modules[name].weight
    assert isinstance(weight, Tensor)
    return weight


def with_weights(
    model: nn.Module, weights: Mapping[str, CodebookWeight], ties: Mapping[str, str]
) -> nn.Module:
    """A copy of a float model with coded weights.

    Args:
        model: The float model; it is not changed.
        weights: By name, as :func:`float_weight` knows them.
        ties: Names of further weights, each with the one of ``weights`` that it shares.

    Raises:
        ValueError: If a layer cannot take its weight.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    layers: dict[int, CodebookLayer] = {}
    for name, stored in {**{name: name for name in weights}, **ties}.items():
        source = modules[name]
        kind = codebook_type(source)
        assert kind is not None
        try:
            # A module of several names is one layer.
            layer = layers.get(id(source)) or kind(source, weights[stored])
        except (ValueError, RuntimeError, TypeError) as error:
            raise ValueError(f"layer {name!r}: {error}") from error
        layers[id(source)] = layer
        owner = layers[id(modules[stored])]
        if layer is not owner:
            layer.share(owner)
    return copy.deepcopy(model, dict[int, object](layers))
