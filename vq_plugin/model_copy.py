"""Copies of models whose hooks and own functions are the copy's, not the original's."""

from __future__ import annotations

import copy
import functools
import weakref
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from types import CellType, FunctionType, MethodType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import _WrappedHook
from torch.overrides import TorchFunctionMode

# Where modules keep hooks, of every kind.
_INERT = frozenset([bool, int, float, str, tuple, list, dict, OrderedDict, set, type(None)])
HOOKS = tuple(name for name in vars(nn.Module()) if "hooks" in name)


def copy_model(model: nn.Module, memo: dict[int, Any]) -> nn.Module:
    """A deep copy; what ``memo`` has by the ids of parts takes the places of those.

    ``memo`` then has all that was copied. Beyond what ``copy.deepcopy`` does, tensors computed with
    gradients, such as kept activations, are copied by their values, and functions follow: a hook or
    a forward of one module alone that knows parts of the model knows those of the copy.
    """
    for key, empty in _empty_mappings(model).items():
        memo.setdefault(key, empty)
    known = dict(memo)
    with _Values():
        try:
            copied: nn.Module = copy.deepcopy(model, memo)
        except Exception as error:
            if (found := _uncopied(model, known)) is None:
                raise
            raise TypeError(
                f"the model cannot be copied, for its attribute {found} ({error}): delete it "
                "before, or define its __deepcopy__"
            ) from error
    rebound = Rebinding(_parts(model), memo)
    for module in copied.modules():
        for store in (vars(module), *(getattr(module, name) for name in HOOKS)):
            # What is changed is put back later: the store cannot change while it is gone through.
            changes = {
                name: changed
                for name, value in store.items()
                if type(value) not in _INERT and (changed := rebound(value)) is not value
            }
            store.update(changes)
    return copied


def _uncopied(model: nn.Module, memo: dict[int, Any]) -> str | None:
    """The first attribute of a module that cannot be copied, with its name and type."""
    parts = {id(part): part for module in model.modules() for part in (module, *_stored(module))}
    for path, module in model.named_modules():
        for name, value in vars(module).items():
            try:
                copy.deepcopy(value, {**parts, **memo})
            except Exception:  # noqa: BLE001 - whatever an object of the user raises
                full = f"{path}.{name}" if path else name
                return f"{full!r}, a {type(value).__name__}"
    return None


def _stored(module: nn.Module) -> Iterator[Tensor]:
    """Parameters and buffers of a module itself."""
    for part in (*module._parameters.values(), *module._buffers.values()):
        if part is not None:
            yield part


def _empty_mappings(model: nn.Module) -> dict[int, object]:
    """Copies of what a module has a dozen of, for hooks: deepcopy would spend its time on them."""
    return {
        id(value): type(value)()
        for module in model.modules()
        for value in vars(module).values()
        if type(value) in (dict, OrderedDict) and not value
    }


def part_copies(model: nn.Module, memo: dict[int, Any]) -> Callable[[Any], Any]:
    """Copies what belongs to a model that :func:`copy_model` has copied, in the same way."""
    rebound = Rebinding(_parts(model), memo)

    def copied(value: Any) -> Any:
        with _Values():
            return rebound(copy.deepcopy(value, memo))

    return copied


def _parts(model: nn.Module) -> set[int]:
    return {id(part) for part in (*model.modules(), *model.parameters(), *model.buffers())}


class Rebinding:
    """What makes functions follow parts of a model, by their ids, to their places in another.

    That is, the object of a bound method or of a weak reference, the arguments of a
    ``functools.partial``, and what a function has as defaults and from around it. All else stays
    the same object.
    """

    # No function within a function: one that calls itself holds itself, and with it both models.
    def __init__(self, parts: Collection[int], places: Mapping[int, Any]) -> None:
        self._parts, self._places = parts, places

    def __call__(self, value: Any, above: tuple[int, ...] = ()) -> Any:
        """The same, or a copy of a function; ``above`` are the ids of those that it is part of."""
        if id(value) in above:
            return value
        follow = functools.partial(self, above=(*above, id(value)))
        match value:
            case nn.Module() | Tensor():
                return self._places.get(id(value), value) if id(value) in self._parts else value
            case MethodType():
                owner, function = follow(value.__self__), follow(value.__func__)
                same = owner is value.__self__ and function is value.__func__
                return value if same else MethodType(function, owner)
            case functools.partial():
                function, arguments = follow(value.func), tuple(map(follow, value.args))
                keywords = {name: follow(each) for name, each in value.keywords.items()}
                old = (value.func, *value.args, *value.keywords.values())
                new = (function, *arguments, *keywords.values())
                return value if _same(old, new) else type(value)(function, *arguments, **keywords)
            case FunctionType():
                return _function(value, follow)
            case weakref.ref() if type(value) is weakref.ref:
                target = value()
                moved = follow(target)
                return value if moved is target else weakref.ref(moved)
            case _WrappedHook():
                hook, owner = follow(value.hook), value.with_module and value.module()
                moved = follow(owner) if owner else None
                same = hook is value.hook and (not owner or moved is owner)
                return value if same else _WrappedHook(hook, moved)
        return value


def _function(function: FunctionType, follow: Callable[[Any], Any]) -> FunctionType:
    cells = tuple(_cell(cell, follow) for cell in function.__closure__ or ())
    defaults = tuple(map(follow, function.__defaults__ or ()))
    keywords = {name: follow(each) for name, each in (function.__kwdefaults__ or {}).items()}
    old = (*(function.__closure__ or ()), *(function.__defaults__ or ()))
    old = (*old, *(function.__kwdefaults__ or {}).values())
    if _same(old, (*cells, *defaults, *keywords.values())):
        return function
    new = FunctionType(
        function.__code__, function.__globals__, function.__name__, defaults, cells or None
    )
    new.__kwdefaults__ = keywords
    for name in ("__qualname__", "__module__", "__doc__"):
        setattr(new, name, getattr(function, name))
    new.__dict__.update(function.__dict__)
    return new


def _cell(cell: CellType, follow: Callable[[Any], Any]) -> CellType:
    try:
        contents = cell.cell_contents
    except ValueError:  # empty as yet
        return cell
    changed = follow(contents)
    return cell if changed is contents else CellType(changed)


def _same(old: tuple[Any, ...], new: tuple[Any, ...]) -> bool:
    return all(one is other for one, other in zip(old, new, strict=True))


class _Values(TorchFunctionMode):
    """Lets deepcopy take tensors that have a gradient to pass on: as values, which they are."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            value, memo = args
            if id(value) not in memo:
                with torch.no_grad():
                    memo[id(value)] = value.detach().clone()
            return memo[id(value)]
        return func(*args, **(kwargs or {}))
