"""Values of a ``state_dict`` given to a model, in a time that grows with its keys."""

from __future__ import annotations

from collections import defaultdict

from torch import Tensor, nn
from torch.nn.modules.module import _IncompatibleKeys


def load_state(model: nn.Module, state: dict[str, Tensor]) -> tuple[list[str], list[str]]:
    """``model.load_state_dict(state, strict=False)``: the keys that ``state`` and the model lack.

    Torch looks through all keys below a module once for every child that it has: a minute for
    10,000 layers in a row. Here every key is looked at once for each module that it is in.
    ``RuntimeError`` names values that do not fit.

    Example:
        >>> import torch
        >>> load_state(nn.Sequential(nn.Linear(1, 1)), {"0.weight": torch.ones(1, 1)})
        (['0.bias'], [])
    """
    if type(model).load_state_dict is not nn.Module.load_state_dict:
        keys = model.load_state_dict(state, strict=False)
        return list(keys.missing_keys), list(keys.unexpected_keys)
    keys = _IncompatibleKeys([], [])
    errors: list[str] = []
    _load(model, dict(state), "", keys, errors)
    if errors:
        lines = "".join(f"\n\t{error}" for error in errors)
        raise RuntimeError(f"Error(s) in loading state_dict for {type(model).__name__}:{lines}")
    return keys.missing_keys, keys.unexpected_keys


def _load(
    module: nn.Module,
    state: dict[str, Tensor],
    prefix: str,
    keys: _IncompatibleKeys,
    errors: list[str],
) -> None:
    module._load_from_state_dict(
        state, prefix, {}, True, keys.missing_keys, keys.unexpected_keys, errors
    )
    # After it, as its hooks may have changed the keys.
    below: dict[str, dict[str, Tensor]] = defaultdict(dict)
    for key, value in state.items():
        below[key[len(prefix) :].partition(".")[0]][key] = value
    for name, child in module._modules.items():
        if child is not None:
            _load(child, below[name], f"{prefix}{name}.", keys, errors)
    for hook in module._load_state_dict_post_hooks.values():
        hook(module, keys)
