"""Parameters that their modules compute anew: by torch's hooks, or by parametrizations."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from types import FunctionType

from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import SpectralNorm
from torch.nn.utils.weight_norm import WeightNorm

from vq_plugin.eval_mode import eval_mode
from vq_plugin.nn.shallow_copy import shallow_copy

# What torch's hooks keep beside the tensor that they compute.
SOURCES = ("_orig", "_mask", "_g", "_v", "_u")
# Torch's reader of checkpoints that hold the parts under their older names.
_OLDER_NORMS = "weight_norm.<locals>._weight_norm_compat_hook"


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Looks at what parametrizations of a module compute do not change their state inside."""
    if parametrize.is_parametrized(module):
        with eval_mode(module.parametrizations):  # type: ignore[arg-type]
            yield
    else:
        yield


def current(module: nn.Module, parameter: str) -> Tensor:
    """A parameter as the next forward pass in eval mode would read it; the module stays as it was.

    Hooks leave it among other attributes, where it is out of date once its parts are loaded, moved
    or changed; and spectral norm changes its state at every look in training mode.
    """
    own = module._parameters.get(parameter)
    if own is not None:
        return own
    hooks = [hook for _, _, hook in _hooks(module)]
    if hooks:
        module = shallow_copy(module)
        module.training = False
        for hook in hooks:
            hook(module, ())
    with at_rest(module):
        value = getattr(module, parameter)
    assert isinstance(value, Tensor)
    return value


def is_computed(module: nn.Module, parameter: str) -> bool:
    """Whether a parametrization or a hook of torch's computes it."""
    return parametrize.is_parametrized(module, parameter) or any(
        name == parameter for _, name, _ in _hooks(module)
    )


def sources(module: nn.Module, parameter: str) -> list[Tensor]:
    """What the ``state_dict`` keeps of a parameter: itself, or the parts it is computed from."""
    keys = {parameter, *(parameter + suffix for suffix in SOURCES)}
    parts = f"parametrizations.{parameter}."
    return [
        value
        for key, value in module.state_dict(keep_vars=True).items()
        if isinstance(value, Tensor) and (key in keys or key.startswith(parts))
    ]


def made_one(module: nn.Module, parameter: str) -> str:
    """The call of torch's that makes a parameter of its parts again.

    Example:
        >>> from torch.nn.utils.parametrizations import weight_norm
        >>> made_one(weight_norm(nn.Linear(2, 2)), "weight")
        "torch.nn.utils.parametrize.remove_parametrizations(layer, 'weight')"
    """
    for _, name, hook in _hooks(module):
        if name == parameter and not isinstance(hook, BasePruningMethod):
            norm = "weight" if isinstance(hook, WeightNorm) else "spectral"
            return f"torch.nn.utils.remove_{norm}_norm(layer, {parameter!r})"
    if parametrize.is_parametrized(module, parameter):
        return f"torch.nn.utils.parametrize.remove_parametrizations(layer, {parameter!r})"
    return f"torch.nn.utils.prune.remove(layer, {parameter!r})"


def drop_weight_hooks(module: nn.Module, parameter: str) -> bool:
    """Removes hooks that compute a parameter, as pruning has; says whether there were any.

    And those that read the parts of a parametrization from checkpoints.
    """
    found = [(key, hook) for key, name, hook in _hooks(module) if name == parameter]
    for key, hook in found:
        del module._forward_pre_hooks[key]
        # Those of spectral norm ask files for the parts that are gone.
        for others in (module._state_dict_hooks, module._load_state_dict_pre_hooks):
            for other, value in list(others.items()):
                inner = getattr(value, "hook", value)
                if getattr(inner, "fn", None) is hook:
                    del others[other]
    # It would write parts that are gone, and no pickle takes it.
    for other, value in list(module._load_state_dict_pre_hooks.items()):
        inner = getattr(value, "hook", value)
        if isinstance(inner, FunctionType) and _older_norm_of(inner) == parameter:
            del module._load_state_dict_pre_hooks[other]
    return bool(found)


def _older_norm_of(hook: FunctionType) -> object:
    """The tensor that a hook reads the older parts of, if it is such a hook."""
    known = hook.__qualname__ == _OLDER_NORMS
    return inspect.getclosurevars(hook).nonlocals.get("name") if known else None


def _hooks(
    module: nn.Module,
) -> Iterator[tuple[int, str, BasePruningMethod | WeightNorm | SpectralNorm]]:
    """Torch's hooks that compute a tensor before each pass: their keys, and the tensor's name."""
    for key, hook in module._forward_pre_hooks.items():
        if isinstance(hook, BasePruningMethod):
            yield key, str(hook._tensor_name), hook
        elif isinstance(hook, WeightNorm | SpectralNorm):
            yield key, hook.name, hook
