"""Codebook layers that are fitted once, however often a host asks."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from vq_plugin.hosting.fit import fit_gathered
from vq_plugin.hosting.statistics import detach_statistics, gathered_moments
from vq_plugin.nn import CodebookLayer, layer_slot
from vq_plugin.schemes import Scheme
from vq_plugin.slot_fit import check_not_lazy


@dataclass
class Conversion:
    """The codebook layers of one conversion, found by what they came from.

    Hosts ask once for every call of a module, and know nothing of tied weights. The keys are weak:
    a prepared model that is kept around must not keep the float weights alive. ``weights`` has the
    first layer of each float weight, ``followers`` who follows one that trains and is shared, and
    ``followed`` the layers that followers made.
    """

    layers: MutableMapping[nn.Module, CodebookLayer] = field(default_factory=WeakIdKeyDictionary)
    weights: MutableMapping[Tensor, CodebookLayer] = field(default_factory=WeakIdKeyDictionary)
    followers: list[nn.Module] = field(default_factory=list)
    followed: list[CodebookLayer] = field(default_factory=list)

    def layer(self, module: nn.Module, scheme: Scheme, seed: int, name: str) -> CodebookLayer:
        """The codebook layer for a float layer, fitted at the first call for its weight.

        It is the same layer for the same ``module``, and one that shares codes and codebooks for
        another with the same weight. Statistics of the inputs are taken off it. A ValueError names
        a layer that cannot be compressed, was not reached, or has another scheme than its weight.
        """
        if module in self.layers:
            return self.layers[module]
        slot = layer_slot(module, name)
        assert slot is not None
        moments = gathered_moments({name: slot}).get(name)
        # Some hosts keep hooks.
        detach_statistics(module)
        check_not_lazy(slot)
        first = self.weights.get(slot.value)
        if first is None:
            small = fit_gathered(name, slot.weight, scheme, moments, seed)
            layer = slot.codebook_layer(small)
            assert layer is not None
            self.weights[slot.value] = layer
        elif first.scheme == scheme:
            layer = slot.codebook_layer(first.codebook_weight)
            assert layer is not None
            layer.share(first)
        else:
            raise ValueError(
                f"layer {name!r} shares its weight with a layer that was compressed with "
                f"{first.scheme}: choose {scheme} for both, or for neither"
            )
        self.layers[module] = layer
        return layer
