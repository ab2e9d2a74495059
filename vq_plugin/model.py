"""A whole model: every chosen layer replaced by its codebook layer."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable, Mapping
from typing import get_args

from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm
from tqdm import tqdm

from vq_plugin.codebook import CodebookWeight
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.weight import check_weight, quantize_weight
from vq_plugin.importance import input_moments
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.ops import Precision
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, select

# Where torch keeps hooks, and which of them take keyword arguments or always run.
_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)

Calibration = Iterable[object] | Callable[[nn.Module], object]


def compress(
    model: nn.Module,
    schemes: Schemes,
    calibration: Calibration | None = None,
    seed: int = 0,
) -> nn.Module:
    """Replaces the chosen layers of a model by codebook layers.

    Layers that share one weight get one set of codes and codebooks and go on sharing it.

    Args:
        model: Float model; it is not changed. A bare layer works too.
        schemes: One scheme for every layer that can take it, or patterns to schemes (exact
            name > ``"re:…"`` > class > ``"*"``; ``None`` leaves a layer), see
            :func:`vq_plugin.select.select`.
        calibration: Unlabelled data that the fits may look at: an iterable of input batches (a
            tuple or list is the model's positional arguments, a mapping its keyword arguments),
            or a callable that runs the model it is given. What is
            lowered is then the error of each layer's output, and biases take up its mean.
            ``None`` lowers the error of the weights.
        seed: Seed of the fits.

    Returns:
        A new model, in the training mode of ``model``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a layer cannot be compressed (the message names
            it and says why), or layers that share a weight would get different schemes.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        >>> small = vq.compress(model, {"0": vq.PQ(k=16, dim=4), "*": vq.KM(k=16)})
        >>> type(small[0]).__name__, type(small[2]).__name__
        ('CodebookLinear', 'CodebookLinear')
    """
    chosen = select(model, schemes)
    modules = dict(model.named_modules())
    ties = tied_weights(model, chosen)
    layers = {name: modules[name] for name in chosen}
    for name, module in layers.items():
        check_layer(name, module)
    moments = {} if calibration is None else input_moments(model, layers, calibration)
    bar = tqdm(chosen.items(), desc="compress", unit="layer", leave=False, disable=None)
    weights = {
        name: fit_layer(name, modules[name], scheme, moments=moments.get(name), seed=seed)
        for name, scheme in bar
        if name not in ties
    }
    return assemble(model, weights)


def assemble(model: nn.Module, weights: Mapping[str, CodebookWeight]) -> nn.Module:
    """Puts compressed weights into a copy of a model.

    Args:
        model: Float model; it is not changed.
        weights: Compressed weights by layer name; layers that share the weight of a named one
            share its codes and codebooks.

    Returns:
        A new model, in the training mode of ``model``.
    """
    # A memo that knows the replaced layers copies everything but them, and puts them in place.
    memo = _own_values(model)
    memo.update((id(module), layer) for module, layer in _replacements(model, weights).items())
    return copy.deepcopy(model, memo)


def swap(model: nn.Module, weights: Mapping[str, CodebookWeight]) -> nn.Module:
    """Puts compressed weights into a model itself, as hosts do that convert in place.

    Args:
        model: Float model; its layers are replaced.
        weights: As for :func:`assemble`.

    Returns:
        ``model``, or the codebook layer if the model is a bare layer.
    """
    replacements = _replacements(model, weights)
    for name, module in list(model.named_modules(remove_duplicate=False)):
        if name and module in replacements:
            model.set_submodule(name, replacements[module])
    return replacements.get(model, model)


def _replacements(
    model: nn.Module, weights: Mapping[str, CodebookWeight]
) -> dict[nn.Module, CodebookLayer]:
    """Codebook layers by the float layers whose places they take."""
    modules = dict(model.named_modules())
    owners = owners_of_parameters(model)
    replacements: dict[nn.Module, CodebookLayer] = {}
    for name, small in weights.items():
        kind = codebook_type(modules[name])
        assert kind is not None
        first = replacements[modules[name]] = kind(modules[name], small)
        for other in owners.get(id(modules[name].weight), [name]):
            if other != name:
                replacements[modules[other]] = tie_layer(modules[other], first)
    for module, layer in replacements.items():
        _carry_hooks(module, layer)
    return replacements


def compress_layer(
    name: str, module: nn.Module, scheme: Scheme, *, moments: Moments | None = None, seed: int = 0
) -> CodebookLayer:
    """Compresses one layer; errors name it.

    Args:
        name: Name of the layer in its model, for messages.
        module: Float layer that has a codebook layer.
        scheme: What to do.
        moments: As in :func:`vq_plugin.quantize_weight`.
        seed: Seed of the fit.

    Returns:
        The codebook layer.

    Raises:
        ValueError: If the layer cannot be compressed.
    """
    kind = codebook_type(module)
    assert kind is not None
    return kind(module, fit_layer(name, module, scheme, moments=moments, seed=seed))


def fit_layer(
    name: str, module: nn.Module, scheme: Scheme, *, moments: Moments | None = None, seed: int = 0
) -> CodebookWeight:
    """The compressed weight of one layer; arguments and errors as :func:`compress_layer`."""
    check_not_lazy(name, module)
    weight = module.weight
    assert isinstance(weight, Tensor)
    try:
        return quantize_weight(weight, scheme, seed=seed, moments=moments)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def check_layer(name: str, module: nn.Module) -> None:
    """Raises ``ValueError`` for a layer that no scheme can compress, before any work is done.

    Calibration would run into it, too, but blame NaN on the layer after it.
    """
    check_not_lazy(name, module)
    weight = module.weight
    assert isinstance(weight, Tensor)
    try:
        check_weight(weight)
    except ValueError as error:
        raise ValueError(f"layer {name!r}: {error}") from error


def check_not_lazy(name: str, module: nn.Module) -> None:
    """Raises ``ValueError`` for a layer that has no weight before its first batch."""
    if any(is_lazy(parameter) for parameter in module.parameters(recurse=False)):
        raise ValueError(f"layer {name!r} is lazy and has no weight yet: run one batch first")


def tie_layer(module: nn.Module, first: CodebookLayer) -> CodebookLayer:
    """A codebook layer for ``module`` that shares codes and codebooks with ``first``."""
    kind = codebook_type(module)
    assert kind is not None
    layer = kind(module, first.codebook_weight)
    layer.share(first)
    return layer


def tied_weights(model: nn.Module, chosen: Mapping[str, Scheme]) -> dict[str, str]:
    """Which chosen layers share the weight of an earlier one.

    Args:
        model: The float model.
        chosen: Schemes by layer name, from :func:`vq_plugin.select.select`.

    Returns:
        Name of the first owner, for every later one.

    Raises:
        ValueError: If layers that share a weight are not all chosen, with one scheme.
    """
    owners = owners_of_parameters(model)
    ties: dict[str, str] = {}
    modules = dict(model.named_modules())
    for name, scheme in chosen.items():
        first, *others = owners.get(id(modules[name].weight), [name])
        for other in {first, *others} - {name}:
            if chosen.get(other) != scheme:
                raise ValueError(
                    f"layers {name!r} and {other!r} share one weight: choose both with the same "
                    f"scheme, or neither ({name!r}: {scheme}, {other!r}: {chosen.get(other)})"
                )
        if first != name:
            ties[name] = first
    return ties


def owners_of_parameters(model: nn.Module) -> dict[int, list[str]]:
    """Names of the layers that own each parameter, by its id."""
    owners: dict[int, list[str]] = {}
    for name, module in model.named_modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(name)
    return owners


def _carry_hooks(source: nn.Module, target: nn.Module) -> None:
    """Keeps the user's hooks; those that rebuild the float weight have nothing left to do."""
    for kind in _HOOKS:
        getattr(target, kind).update(getattr(source, kind))
    target._is_full_backward_hook = source._is_full_backward_hook
    drop_weight_hooks(target)


def drop_weight_hooks(module: nn.Module) -> None:
    """Removes the hooks of pruning and the like, which would compute the weight again."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if isinstance(hook, BasePruningMethod | WeightNorm | SpectralNorm):
            del module._forward_pre_hooks[key]


def _own_values(model: nn.Module) -> dict[int, object]:
    """Copies of tensors that deepcopy refuses: weights that pruning computed with gradients."""
    return {
        id(value): value.detach().clone()
        for module in model.modules()
        for value in vars(module).values()
        if isinstance(value, Tensor) and not value.is_leaf
    }


def set_precision(model: nn.Module, precision: Precision) -> None:
    """Sets how the codebook layers of a model compute, in place; files do not keep it.

    Args:
        model: A model with codebook layers.
        precision: ``"exact"`` or ``"fast"``: see :func:`vq_plugin.ops.codebook_linear`.

    Raises:
        ValueError: If the model has no codebook layer, or ``precision`` is another word.

    Example:
        >>> import vq_plugin as vq
        >>> small = vq.compress(nn.Linear(64, 64), vq.PQ(k=16, dim=4))
        >>> vq.set_precision(small, "fast")
    """
    if precision not in get_args(Precision):
        raise ValueError(f"precision must be 'exact' or 'fast', got {precision!r}")
    layers = [module for module in model.modules() if isinstance(module, CodebookLayer)]
    if not layers:
        raise ValueError("the model has no codebook layer; compress it first")
    for layer in layers:
        layer.precision = precision
