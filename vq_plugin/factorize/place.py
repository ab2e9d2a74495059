"""Factorized layers in the places of whole ones, in a copy of a model."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from vq_plugin.default_device import cpu_by_default
from vq_plugin.eval_mode import alone
from vq_plugin.factorize.layers import FactorizedLayer, KernelBasis, LowRank
from vq_plugin.factors.factors import Factor
from vq_plugin.factors.splits import KernelSplit, NoSplitError, Split
from vq_plugin.nn import Slot
from vq_plugin.nn.own_doing import take_over
from vq_plugin.nn.recomputed import at_rest
from vq_plugin.replace import copy_around, shared_parameters

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)


def split_for(slot: Slot, factor: Factor) -> Split | str:
    """How a factor cuts the weight of a slot, or why layers of its kind have no such factors.

    ``ValueError``, which names the layer, for one that does more than its kind, or a rank that it
    has not.
    """
    module = slot.module
    if not isinstance(module, _LAYERS):
        return f"{type(module).__name__} has no factors, as Linear and convolutions have"
    if slot.host is not module:
        return f"{type(slot.host).__name__} takes its weight and does not call it"
    own = {*vars(module), *module._buffers, *module._modules}
    taken = {"factor", *LowRank.parts, *KernelBasis.parts} & own
    if slot.layer is None or taken:
        what = f"has a {min(taken)!r}" if taken else "does more than torch's"
        raise ValueError(
            f"layer {slot.shown}: this {type(module).__name__} {what}, which two layers in its "
            "place would not have: leave it with None, or put a plain layer there"
        )
    try:
        return factor.split_of(module)
    except NoSplitError as error:
        return str(error)
    except ValueError as error:
        raise ValueError(f"layer {slot.shown}: {error}") from None


@torch.inference_mode(False)
def empty_layer(slot: Slot, factor: Factor, split: Split) -> FactorizedLayer:
    """What takes the place of a slot's layer, with weights of zeros; ``factor`` has a rank."""
    cls = KernelBasis if isinstance(split, KernelSplit) else LowRank
    with at_rest(slot.module):
        return cls(slot.module, slot.value, slot.trains, factor, split)


@torch.inference_mode(False)
@cpu_by_default()
def place(
    model: nn.Module, layers: Mapping[Slot, FactorizedLayer], shifts: Mapping[Slot, Tensor]
) -> nn.Module:
    """A copy of a model with factorized layers, which get all else of the layers before them.

    ``shifts`` are what biases take up, but for those that several layers have.
    """
    # Calls on other threads may have the same model in eval mode.
    with alone(model):
        memo: dict[int, object] = {}
        for slot, layer in layers.items():
            memo[id(slot.module)] = layer
            layer.training = slot.module.training
        small, copied = copy_around(model, memo)
    shared = shared_parameters(model)
    for slot, layer in layers.items():
        before = slot.module._parameters["bias"]
        take_over(layer, slot.module, slot.parameter, copied)
        layer.layers[1].register_parameter("bias", layer._parameters.pop("bias"))
        for part in layer.layers:
            part.training = layer.training
        if layer.bias is not None and slot in shifts and id(before) not in shared:
            layer.bias.data += shifts[slot].to(layer.bias)
    return small
