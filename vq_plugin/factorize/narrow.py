"""Layers with fewer neurons, in place, and what they were before."""

from __future__ import annotations

from collections.abc import Mapping, Set

import torch
from torch import Tensor, nn

from vq_plugin.factorize.chains import Chain, NoChainError
from vq_plugin.factorize.layers import FactorizedLayer, KernelBasis, remember
from vq_plugin.fit.output.moments import Moments
from vq_plugin.nn.recomputed import current
from vq_plugin.replace import put_parameter


def writer(layer: nn.Module) -> nn.Module:
    """What has a row for each output of a layer: itself, or the mixes of basis kernels."""
    return layer.coefficients if isinstance(layer, KernelBasis) else layer


def check_own(chain: Chain, name: str, modules: Mapping[str, nn.Module], shared: Set[int]) -> None:
    """``NoChainError`` where what a chain would change is one of the ``shared`` parameters."""
    changing = [writer(modules[each])._parameters.get("weight") for each in chain.consumers]
    for each in filter(None, (name, chain.norm)):
        changing += writer(modules[each])._parameters.values()
    if shared & {*map(id, changing)}:
        raise NoChainError("it shares parameters, or a layer that takes its outputs does")


def keep_outputs(layer: nn.Module, stay: Tensor) -> None:
    """Keeps some neurons of a layer, or of its batch norm."""
    layer = writer(layer)
    _remember(layer)
    for name, value in _by_neuron(layer).items():
        kept = value.detach()[stay.to(value.device)].clone()
        if name in layer._buffers:
            layer._buffers[name] = kept
        else:
            put_parameter(layer, name, kept)
    for name in ("out_features", "out_channels", "num_features"):
        if hasattr(layer, name):
            setattr(layer, name, len(stay))


def _remember(layer: nn.Module) -> None:
    remember(layer, {name: tuple(value.shape) for name, value in _by_neuron(layer).items()})


def _by_neuron(layer: nn.Module) -> dict[str, Tensor]:
    """What has a row for each neuron."""
    names = [name for name in ("weight", "bias") if getattr(layer, name, None) is not None]
    values = {name: current(layer, name) for name in names}
    for name in ("running_mean", "running_var"):
        value = layer._buffers.get(name)
        if value is not None:
            values[name] = value
    return values


def by_neuron(layer: nn.Module, neurons: int) -> Tensor:
    """What a layer weighs each of its inputs with, float64 ``(out, neurons, places)``."""
    weight = current(writer(layer), "weight").detach()
    return weight.cpu().double().reshape(len(weight), neurons, -1)


def add_up(layer: nn.Module, stay: Tensor, mixes: Tensor, known: Moments | None) -> None:
    """Gives the neurons that stay the weights of those that are mixes of them."""
    weighed, layer = by_neuron(layer, len(mixes)), writer(layer)
    _remember(layer)
    weight = current(layer, "weight").detach()
    added = torch.einsum("onp,nk->okp", weighed, mixes)
    if known is not None and layer._parameters.get("bias") is not None:
        change = -weighed
        change[:, stay] += added
        shift = known.bias_shift(change)
        if shift is not None:
            add_to_bias(layer, shift)
    shape = (len(weight), added[0].numel() // weight[0, 0].numel(), *weight.shape[2:])
    put_parameter(layer, "weight", added.reshape(shape).to(weight).contiguous())
    for name in ("in_features", "in_channels"):
        if hasattr(layer, name):
            setattr(layer, name, shape[1])


def add_to_bias(layer: nn.Module, shift: Tensor) -> None:
    """Adds to the bias that a layer has."""
    bias = current(layer, "bias")
    put_parameter(layer, "bias", bias.detach() + shift.to(bias))


def settle_products(model: nn.Module) -> None:
    """Has products take note of channels that their layers have lost."""
    for module in model.modules():
        if isinstance(module, FactorizedLayer):
            module.settle()
