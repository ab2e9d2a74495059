"""What a layer has and does beyond its float type."""

from __future__ import annotations

from typing import Any

from torch import nn
from torch.nn.utils.parametrize import type_before_parametrizations

from vq_plugin.model_copy import HOOKS
from vq_plugin.nn.coded import CodedWeight
from vq_plugin.nn.layer import CodebookLayer
from vq_plugin.nn.recomputed import SOURCES, drop_weight_hooks, is_computed

# What a subclass may define and still do nothing else than its float type.
_HARMLESS = frozenset(
    [
        "__init__",
        "__module__",
        "__doc__",
        "__qualname__",
        "__annotations__",
        "__annotate__",
        "__annotate_func__",
        "__annotations_cache__",
        "__constants__",
        "__dict__",
        "__weakref__",
        "__firstlineno__",
        "__static_attributes__",
        "__parameters__",
        "__orig_bases__",
        "__abstractmethods__",
        "_abc_impl",
        "__repr__",
        "extra_repr",
        "reset_parameters",
    ]
)
# Made anew by torch.
_COMPILED = "_compiled_call_impl"
_MODULE = frozenset({*vars(nn.Module()), _COMPILED})


def replaceable(module: nn.Module, parameter: str, layer: type[CodebookLayer]) -> bool:
    """Whether a codebook layer can do all that a float layer does.

    Not so if the float layer has methods of its own, by its class or by itself, a bias that is
    computed, or names that the codebook layer needs. All else that it has can be taken over.
    """
    plain = layer.float_type
    for cls in type_before_parametrizations(module).__mro__:
        if cls not in plain.__mro__ and vars(cls).keys() - _HARMLESS:
            return False
    if hasattr(module, "bias") and "bias" not in module._parameters:
        return False
    return not any(
        hasattr(layer, name)
        or hasattr(plain, name)
        or name in {*CodedWeight.__annotations__, "exponents"}
        for store in (vars(module), module._parameters, module._buffers, module._modules)
        for name in store
        if name not in _MODULE and name != "bias" and not _of_weight(module, parameter, name)
    )


def take_over(layer: nn.Module, module: nn.Module, parameter: str, moved: Any) -> None:
    """Gives a layer all that the one before it has beside its weight, and that it has not itself.

    ``moved`` gives what takes the place of a value: attributes, parameters, buffers, submodules and
    hooks of every kind.
    """
    for store in ("_parameters", "_buffers", "_modules", "__dict__"):
        ours = getattr(layer, store)
        for name, value in list(getattr(module, store).items()):
            if name in _MODULE or name in ours or _of_weight(module, parameter, name):
                continue
            ours[name] = moved(value)
    layer._non_persistent_buffers_set |= module._non_persistent_buffers_set & layer._buffers.keys()
    for name in HOOKS:
        if hooks := getattr(module, name):
            getattr(layer, name).update({key: moved(hook) for key, hook in hooks.items()})
    layer._is_full_backward_hook = module._is_full_backward_hook
    # Those that rebuild the float weight have nothing left to do.
    drop_weight_hooks(layer, parameter)


def _of_weight(module: nn.Module, parameter: str, name: str) -> bool:
    """Whether something of a layer is its weight, or what this is computed from."""
    if name == parameter or not is_computed(module, parameter):
        return name == parameter
    return name == "parametrizations" or name in {parameter + suffix for suffix in SOURCES}
