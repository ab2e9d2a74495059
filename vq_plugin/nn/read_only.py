"""Decoded weights as others see them: to be read, not to be written to."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils._pytree import tree_map

from vq_plugin.ops import recording

WRITTEN = (
    "a compressed weight is codes into codebooks: what is written to its decoded values would be "
    "lost. Change the float model and compress it again, put to_float() of a codebook layer in its "
    "place, or train codebooks with vq.finetune; for values of your own take weight.clone()"
)


def read_only(weight: Tensor) -> Tensor:
    """The same tensor; operations in place on it, or on a view of it, are a ``RuntimeError``.

    Those of ``torch.nn.init`` change nothing, and warn.

    Example:
        >>> weight = read_only(torch.ones(2))
        >>> (weight + 1).tolist()
        [2.0, 2.0]
        >>> weight[0] = 0
        Traceback (most recent call last):
        RuntimeError: a compressed weight is codes into codebooks: what is written ...
    """
    # Programs that are recorded keep plain tensors; other kinds of tensors have their own rules.
    # And autocast does not see into operators of tensors that intercept them.
    plain = type(weight) is not Tensor or weight.is_meta or recording()
    if plain or torch.is_autocast_enabled(weight.device.type):
        return weight
    return weight.as_subclass(_ReadOnly)


class _ReadOnly(Tensor):
    # Not by __torch_function__: Transformer layers leave their fast path where a weight has one.
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def __torch_dispatch__(  # type: ignore[override]
        cls,
        func: Callable[..., Any],
        types: object,
        args: tuple[Any, ...] = (),
        kwargs: Mapping[str, Any] | None = None,
    ) -> Any:
        schema = func._schema  # type: ignore[attr-defined]
        named = dict(zip((each.name for each in schema.arguments), args, strict=False))
        named.update(kwargs or {})
        for argument in schema.arguments:
            written = argument.alias_info is not None and argument.alias_info.is_write
            if written and _any_read_only(target := named.get(argument.name)):
                # A model that is initialized as a whole loses nothing that it had learned.
                if sys._getframe(1).f_globals.get("__name__") != "torch.nn.init":
                    raise RuntimeError(WRITTEN)
                warnings.warn(WRITTEN, stacklevel=4)
                return target
        result = func(*tree_map(_plain, args), **tree_map(_plain, dict(kwargs or {})))
        views = any(each.alias_info is not None for each in schema.returns)
        return tree_map(read_only, result) if views else result

    @property
    def data(self) -> Tensor:
        return self.detach()

    @data.setter
    def data(self, value: Tensor) -> None:
        raise RuntimeError(WRITTEN)

    def numpy(self, *, force: bool = False) -> NDArray[Any]:
        array: NDArray[Any] = _plain(self).numpy(force=force)
        array.flags.writeable = False
        return array

    def tolist(self) -> Any:
        return _plain(self).tolist()

    def __deepcopy__(self, memo: dict[int, Any]) -> Tensor:
        # By its values, as that of a float layer, although it may be computed with gradients.
        copied: Tensor = _plain(self).detach().clone()
        memo[id(self)] = copied
        return copied

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _plain(self).__reduce_ex__(protocol)


def _plain(value: Any) -> Any:
    if not isinstance(value, _ReadOnly):
        return value
    without = torch._C._DisableTorchDispatch()
    try:
        return value.as_subclass(Tensor)
    finally:
        del without


def _any_read_only(value: object) -> bool:
    if isinstance(value, list | tuple):
        return any(map(_any_read_only, value))
    return isinstance(value, _ReadOnly)
