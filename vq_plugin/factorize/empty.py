"""Channels without a weight that is not zero: a smaller model that gives the same."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.nn.parameter import is_lazy

from vq_plugin.default_device import cpu_by_default
from vq_plugin.factorize.chains import Chain, NoChainError, find_chain, is_pool, traced, what_is
from vq_plugin.factorize.layers import FactorizedLayer, KernelBasis, parts_of_products
from vq_plugin.factorize.narrow import (
    add_to_bias,
    add_up,
    by_neuron,
    check_own,
    keep_outputs,
    settle_products,
    writer,
)
from vq_plugin.nn.recomputed import current
from vq_plugin.replace import assemble, shared_parameters
from vq_plugin.select import check_model

_LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, KernelBasis)


# What is made in inference mode is never trained.
@torch.inference_mode(False)
@cpu_by_default()
def remove_empty_channels(model: nn.Module) -> nn.Module:
    """Takes channels, or neurons, away that make no difference: a smaller float model.

    Those whose outputs nobody weighs by anything but zero, and those whose own weights are all
    zero: what they give is the same for every input. Where that is zero behind the activation they
    go; where it is not, and the layers that take it have a bias and no border of zeros, their
    biases take it up. All others stay. One that goes may leave another without a reader, and so on.
    A last channel always stays.

    In eval mode the outputs stay what they were, up to rounding. Chains are those of
    :func:`vq_plugin.merge_neurons`: channels that residual sums share stay.

    Args:
        model: Float model, such as of :func:`vq_plugin.prune_factors` or :func:`vq_plugin.prune`;
            it is not changed. Products may be among its layers; channels between their two layers
            go, too. One that ``torch.fx`` cannot trace stays as it is.

    Returns:
        A new model, in the training mode of ``model``. Rates still count against the whole one, and
        :func:`vq_plugin.load` takes a whole one.

    Raises:
        TypeError: If ``model`` is no module.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 4)).eval()
        >>> model[2].weight.data[:, ::2] = 0
        >>> vq.remove_empty_channels(model)[0]
        Linear(in_features=8, out_features=16, bias=True)
    """
    check_model(model)
    small = assemble(model, {})
    try:
        graph = traced(small, KernelBasis)
    except ValueError:
        return small
    with torch.no_grad():
        # Whole rounds: to begin anew behind each layer that lost channels is cubic in their number.
        while sum(_without_empty(small, *chain) for chain in _chains(small, graph)):
            pass
    return small


@torch.inference_mode(False)
@cpu_by_default()
def first_channels(model: nn.Module, counts: Mapping[str, int]) -> nn.Module:
    """A copy of which some layers have only so many channels, whichever they are.

    Those that have no chain stay as they are.
    """
    small = assemble(model, {})
    try:
        graph = traced(small, KernelBasis)
    except ValueError:
        return small
    with torch.no_grad():
        for name, chain in _chains(small, graph):
            if name in counts:
                _keep(small, name, chain, torch.arange(counts[name]))
    return small


def _chains(model: nn.Module, graph: fx.Graph) -> Iterator[tuple[str, Chain]]:
    """Layers with channels that can go, and where these are taken."""
    modules, shared = dict(model.named_modules()), shared_parameters(model)
    for name, module in modules.items():
        weight = module._parameters.get("weight")
        if not isinstance(module, _LAYERS) or (weight is not None and is_lazy(weight)):
            continue
        try:
            chain = find_chain(graph, modules, name)
            check_own(chain, name, modules, shared)
        except NoChainError:
            continue
        yield name, chain


def _without_empty(model: nn.Module, name: str, chain: Chain) -> bool:
    """Whether channels of a layer have gone."""
    modules, shared = dict(model.named_modules()), shared_parameters(model)
    values = _constants(modules[name], chain, modules)
    empty, taken = torch.ones(chain.neurons, dtype=torch.bool), {}
    for consumer, path in chain.between.items():
        layer = modules[consumer]
        unread = (by_neuron(layer, chain.neurons) == 0).all(2).all(0)
        given = _behind(path, modules, values)
        same = given == 0
        bias = writer(layer)._parameters.get("bias")
        if bias is not None and id(bias) not in shared and not _has_border(layer):
            same |= given.isfinite()
        empty &= unread | same
        taken[consumer] = torch.where(unread, 0, given)
    if bool(empty.all()):
        empty[0] = False
    return bool(empty.any()) and _keep(model, name, chain, (~empty).nonzero().flatten(), taken)


def _keep(
    model: nn.Module,
    name: str,
    chain: Chain,
    stay: Tensor,
    taken: Mapping[str, Tensor] | None = None,
) -> bool:
    """Leaves a layer some channels; biases take up what the others give, ``taken``, by consumer."""
    modules = dict(model.named_modules())
    if not _fit(model, name, chain, len(stay)):
        return False
    keep_outputs(modules[name], stay)
    if chain.norm is not None:
        keep_outputs(modules[chain.norm], stay)
    rows = torch.eye(chain.neurons, dtype=torch.float64)[:, stay]
    for consumer in chain.consumers:
        layer: Any = modules[consumer]
        if taken is not None:
            values = taken[consumer].index_fill(0, stay, 0)
            if bool(values.any()):
                weights = layer.weight.detach().cpu().double()
                by_channel = weights.reshape(len(weights), chain.neurons, -1).sum(2)
                add_to_bias(writer(layer), by_channel @ values)
        add_up(layer, stay, rows, None)
    settle_products(model)
    return True


def _fit(model: nn.Module, name: str, chain: Chain, count: int) -> bool:
    """Whether products could have their ranks with fewer channels around them."""
    parts = parts_of_products(model)
    modules = dict(model.named_modules())
    for each in (name, *chain.consumers):
        product = model.get_submodule(parts.get(modules[each], each))
        if not isinstance(product, FactorizedLayer) or isinstance(product, KernelBasis):
            continue
        outputs, inputs = product.widths
        first, second = product.layers
        if modules[each] is second and each == name:
            outputs = count
        elif modules[each] is first and each != name:
            inputs = count * (inputs // chain.neurons)
        else:
            continue
        if not product.fits(outputs, inputs):
            return False
    return True


def _constants(layer: nn.Module, chain: Chain, modules: Mapping[str, nn.Module]) -> Tensor:
    """What each neuron gives whatever comes in, float64 ``(neurons,)``, NaN where that differs."""
    layer = writer(layer)
    weight = current(layer, "weight").detach().cpu().double().flatten(1)
    bias = layer._parameters.get("bias")
    values = weight.new_zeros(len(weight)) if bias is None else bias.detach().cpu().double()
    values = torch.where((weight == 0).all(1), values, torch.nan)
    if chain.norm is None:
        return values
    norm: Any = modules[chain.norm]
    scale = (norm.running_var.cpu().double() + norm.eps).rsqrt()
    shift = torch.zeros_like(values)
    if norm.affine:
        scale, shift = scale * norm.weight.cpu().double(), norm.bias.cpu().double()
    given = (values - norm.running_mean.cpu().double()) * scale + shift
    return torch.where(scale == 0, shift, given)


def _behind(path: tuple[fx.Node, ...], modules: Mapping[str, nn.Module], values: Tensor) -> Tensor:
    """What becomes of constants on their way, NaN where they are constant no more."""
    for node in path:
        module: Any = modules[str(node.target)] if node.op == "call_module" else None
        what, known = what_is(node, module), node.args[1:]
        if what.startswith("avg_pool"):
            # A border of zeros may count.
            values = torch.where(values == 0, values, torch.nan)
        elif what in ("flatten", "contiguous") or is_pool(what) or what.startswith("dropout"):
            continue
        elif any(isinstance(each, fx.Node) for each in (*known, *node.kwargs.values())):
            return torch.full_like(values, torch.nan)
        elif module is not None:
            values = module(values.clone())
        elif node.op == "call_method":
            values = getattr(values.clone(), str(node.target))(*known, **node.kwargs)
        else:
            target: Any = node.target
            values = target(values.clone(), *known, **node.kwargs)
    return values


def _has_border(layer: Any) -> bool:
    """Whether zeros stand around what a layer takes."""
    if isinstance(layer, nn.Linear) or layer.padding_mode != "zeros":
        return False
    return layer.padding != "valid" and (layer.padding == "same" or any(layer.padding))
