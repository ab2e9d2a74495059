"""Slots: the weights that can be coded, whatever module they belong to.

A slot is one weight of one module: its view as ``(out, in, ...)``, the inputs that meet it, and the
codebook layer that serves it, if there is one. What kinds of modules have slots is a registry.
"""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn.coded import CodedWeight
from vq_plugin.nn.inputs import Arguments, Patches
from vq_plugin.nn.layer import CodebookLayer
from vq_plugin.nn.own_doing import replaceable
from vq_plugin.nn.parameter import coded_parameters
from vq_plugin.nn.recomputed import SOURCES, at_rest, current, is_computed, sources
from vq_plugin.nn.view import View

Inputs: TypeAlias = Callable[[nn.Module, Arguments, str], Iterator[Tensor | Patches]]
MakeView: TypeAlias = Callable[[nn.Module, Tensor], View]


@dataclass(frozen=True)
class SlotKind:
    """What the slots of one parameter of one class of modules have in common.

    Its attributes are the arguments of :func:`register_slot`. A dot in the name of the parameter
    leads to a submodule whose forward pass the module does not run.
    """

    parameter: str
    view: MakeView | None = None
    inputs: Inputs | None = None
    squares: Inputs | None = None
    groups: Callable[[nn.Module], int] = lambda _: 1
    looks_up: bool = False
    recurs: bool = False
    layer: type[CodebookLayer] | None = None


_KINDS: dict[type[nn.Module] | str, list[SlotKind]] = {}
# What was found for a class, until a slot is registered: a model asks for every module, many times.
_FOUND: WeakKeyDictionary[type[nn.Module], tuple[SlotKind, ...]] = WeakKeyDictionary()


def register_slot(
    module: type[nn.Module] | str,
    parameter: str,
    *,
    view: tuple[int, ...] | MakeView | None = None,
    inputs: Inputs | None = None,
    squares: Inputs | None = None,
    groups: Callable[[nn.Module], int] | None = None,
    looks_up: bool = False,
    recurs: bool = False,
    layer: type[CodebookLayer] | None = None,
) -> None:
    """Lets a parameter of a class of modules be coded, everywhere.

    Args:
        module: The class; those that derive from it have the slot, too. Or its full name, such as
            ``"transformers.pytorch_utils.Conv1D"``, which imports nothing; ``*`` stands for any
            letters.
        parameter: Name of the parameter, of two dimensions or more; or ``"re:…"`` for all whose
            whole names match.
        view: The order in which the parameter's dimensions are outputs, inputs and kernel, such as
            ``(1, 0)`` for ``(in, out)``; or a function of module and parameter that gives a
            :class:`vq_plugin.View`. ``None`` where they are in that order.
        inputs: Which inputs meet the weight: a function of the module, the arguments of its
            ``forward`` by name, and the parameter's name, that yields float32
            ``(groups, samples, inputs)``, see :mod:`vq_plugin.nn.inputs`. ``None`` leaves the
            weight without calibration.
        squares: Cheaper inputs in their place where mean squares are all that is wanted, one for
            each ``in`` of the weight.
        groups: How many groups ``inputs`` yields for a module; one if not given.
        looks_up: Whether the module looks rows of the weight up, as Embedding does.
        recurs: Whether the module multiplies by the weight at every step of a sequence, as LSTM
            does. Then calibrated fits ask which errors of its outputs make up for each other.
        layer: The codebook layer that takes the module's place. Without one the module stays, and
            holds its parameter as codes.

    Raises:
        TypeError: If ``module`` is neither a class of modules nor a text.
        ValueError: If the class has that slot already.

    Example:
        >>> import torch, vq_plugin as vq
        >>> class Scores(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.kernel = nn.Parameter(torch.randn(64, 10))
        ...     def forward(self, x):
        ...         return x @ self.kernel
        >>> vq.register_slot(Scores, "kernel", view=(1, 0))
        >>> small = vq.compress(nn.Sequential(nn.Linear(8, 64), Scores()), vq.KM(k=16))
        >>> [row.name for row in vq.summary(small).rows]
        ['0', '1']
    """
    if not isinstance(module, str) and not (
        isinstance(module, type) and issubclass(module, nn.Module)
    ):
        raise TypeError(f"a slot belongs to a class of modules or to its full name, got {module!r}")
    kinds = _KINDS.setdefault(module, [])
    if any(kind.parameter == parameter for kind in kinds):
        raise ValueError(f"{module} has a slot {parameter!r} already")
    make = _in_order(view) if isinstance(view, tuple) else view
    _FOUND.clear()
    kinds.append(
        SlotKind(parameter, make, inputs, squares, groups or (lambda _: 1), looks_up, recurs, layer)
    )


def registered_slots() -> Mapping[type[nn.Module] | str, list[SlotKind]]:
    """The kinds of slots by class or name of the module, as they were registered."""
    return MappingProxyType(_KINDS)


def _in_order(order: tuple[int, ...]) -> MakeView:
    return lambda _, parameter: View.ordered(tuple(parameter.shape), order)


@dataclass(frozen=True, eq=False)
class Slot:
    """One weight of one module of a model.

    Attributes:
        names: What it goes by; the first is its name.
        module_names: What the module that it belongs to goes by, and its host.
        module: The module that it belongs to.
        parameter: Its name there.
        kind: What slots of this kind have in common.
        host: The module whose arguments :attr:`SlotKind.inputs` reads.
        key: The parameter as ``host`` calls it.
    """

    names: tuple[str, ...]
    module_names: tuple[str, ...]
    module: nn.Module
    parameter: str
    kind: SlotKind
    host: nn.Module
    key: str

    @property
    def name(self) -> str:
        """``fc`` for the only slot of a class of modules, ``lstm.weight_ih_l0`` for one of many."""
        return self.names[0]

    @property
    def shown(self) -> str:
        """Its name in messages; a bare layer has none."""
        return repr(self.name) if self.name else f"{type(self.module).__name__} (the model itself)"

    @property
    def value(self) -> Tensor:
        """The parameter, as the next forward pass in eval mode reads it."""
        return current(self.module, self.parameter)

    @property
    def tensors(self) -> list[Tensor]:
        """What the ``state_dict`` keeps of it: the parameter, or the parts it is computed from."""
        return sources(self.module, self.parameter)

    @property
    def trains(self) -> bool:
        """Whether the parameter wants gradients, or what it is computed from."""
        own = self.module._parameters.get(self.parameter)
        return any(part.requires_grad for part in (self.tensors if own is None else [own]))

    @property
    def view(self) -> View:
        """Between the parameter and its weight; ``ValueError`` names a slot whose view fails."""
        if self.kind.view is None:
            return View.whole(tuple(self.value.shape))
        value = self.value
        try:
            view = self.kind.view(self.module, value)
            if view.parameter_shape != tuple(value.shape):
                raise ValueError(f"{view} is not of a parameter of shape {tuple(value.shape)}")
        except Exception as error:
            raise ValueError(
                f"layer {self.shown}: the view= that {self.kind.parameter!r} is registered with "
                f"fails: {type(error).__name__}: {error}"
            ) from error
        return view

    @property
    def weight(self) -> Tensor:
        """The weight, ``(out, in, ...)``."""
        return self.view.weight(self.value)

    @property
    def layer(self) -> type[CodebookLayer] | None:
        """The codebook layer that can take the module's place.

        A module stays that does more than its float type does, or has another slot.
        """
        layer = self.kind.layer
        if len([kind for kind in slot_kinds(type(self.module)) if "." not in kind.parameter]) > 1:
            return None
        if layer is None or self.derived or not replaceable(self.module, self.parameter, layer):
            return None
        return layer

    @property
    def derived(self) -> bool:
        """Whether hooks unknown here compute the weight of the kind from the parameter."""
        return not _is_of(self.kind, self.key)

    def codebook_layer(self, small: CodebookWeight) -> CodebookLayer | None:
        """The :attr:`layer` with a compressed weight, or ``None`` if the module stays."""
        kind = self.layer
        if kind is None:
            return None
        with at_rest(self.module):
            layer = kind(self.module, small)
        trains = self.trains
        for table in (layer.codebooks, layer.scale):
            if table is not None:
                table.requires_grad_(trains)
        return layer

    @property
    def observable(self) -> bool:
        """Whether the inputs that meet the weight are known."""
        if self.derived or (self.kind.inputs is None and not self.kind.looks_up):
            return False
        # A forward of one's own may do anything with them.
        if "forward" in vars(self.host) or "_conv_forward" in vars(self.host):
            return False
        # That of a parametrized module begins with a class which torch derives from its own.
        classes = parametrize.type_before_parametrizations(self.host).__mro__
        owners = (
            next(cls for cls in classes if name in vars(cls))
            for name in ("forward", "_conv_forward")
            if hasattr(type(self.host), name)
        )
        return all(
            owner.__module__.startswith("torch.nn.")
            or any(self.kind in _kinds_of(cls) for cls in classes[: classes.index(owner) + 1])
            for owner in owners
        )

    @property
    def bias(self) -> str | None:
        """The parameter that can take up the mean of the output's error, or ``None``."""
        name = self.parameter.replace("weight", "bias")
        # One that is computed forgets what it has taken up.
        bias = self.module._parameters.get(name)
        # Outputs of a product: rows of the weight.
        fits = bias is not None and not is_lazy(bias) and bias.dim() == 1
        if name == self.parameter or not fits or is_lazy(self.value):
            return None
        assert bias is not None
        return name if bias.numel() == self.view.shape[0] else None


def shown(name: str) -> str:
    """The name of a slot in messages; that of a bare layer says so."""
    return repr(name) if name else "'' (the model itself)"


def find_slots(model: nn.Module) -> dict[str, Slot]:
    """The slots of a model by name, in the order of its modules; coded weights have none."""
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    slots: dict[tuple[int, str], Slot] = {}
    for host, host_names in names.items():
        if isinstance(host, CodedWeight | torch.jit.ScriptModule):
            continue
        for kind in slot_kinds(type(host)):
            for key in _parameters(host, kind):
                path, _, parameter = key.rpartition(".")
                module = host.get_submodule(path)
                if (id(module), parameter) in slots:
                    continue
                slots[id(module), parameter] = Slot(
                    tuple(slot_names(names[module], module, parameter)),
                    tuple(dict.fromkeys((*names[module], *host_names))),
                    module,
                    parameter,
                    kind,
                    host,
                    key,
                )
    return {slot.name: slot for slot in slots.values()}


def layer_slot(module: nn.Module, name: str = "") -> Slot | None:
    """The slot of a float layer that a codebook layer can replace, ``None`` for other modules."""
    slot = find_slots(module).get("")
    return None if slot is None or slot.layer is None else replace(slot, names=(name,))


def other_parameters(model: nn.Module, slots: Mapping[str, Slot]) -> dict[str, Slot]:
    """Slots for the float parameters of two dimensions or more that ``slots``, all, do not have."""
    taken = {(id(slot.module), slot.parameter) for slot in slots.values()}
    found = {}
    for path, module in model.named_modules():
        if isinstance(
            module, CodedWeight | parametrize.ParametrizationList | torch.jit.ScriptModule
        ):
            continue
        for parameter, value in module._parameters.items():
            if value is None or is_lazy(value) or (id(module), parameter) in taken:
                continue
            if value.dim() < 2 or not value.is_floating_point():
                continue
            if any((id(module), parameter.removesuffix(part)) in taken for part in SOURCES):
                continue
            [*names] = slot_names([path], module, parameter)
            kind = SlotKind(parameter)
            found[names[0]] = Slot((names[0],), (), module, parameter, kind, module, parameter)
    return found


def slot_kinds(cls: type[nn.Module]) -> tuple[SlotKind, ...]:
    """The kinds of slots of a class of modules and its bases, the nearest of each parameter."""
    if cls not in _FOUND:
        kinds: dict[str, SlotKind] = {}
        for base in cls.__mro__:
            for kind in _kinds_of(base):
                kinds.setdefault(kind.parameter, kind)
        _FOUND[cls] = tuple(kinds.values())
    return _FOUND[cls]


def _kinds_of(cls: type) -> list[SlotKind]:
    if cls in _KINDS:
        return _KINDS[cls]
    full = f"{cls.__module__}.{cls.__qualname__}"
    texts = (name for name in _KINDS if isinstance(name, str))
    return next((_KINDS[name] for name in texts if fnmatch.fnmatchcase(full, name)), [])


def _is_of(kind: SlotKind, key: str) -> bool:
    if kind.parameter.startswith("re:"):
        return re.fullmatch(kind.parameter.removeprefix("re:"), key) is not None
    return kind.parameter == key


def _parameters(module: nn.Module, kind: SlotKind) -> list[str]:
    """Names of a module's parameters that are of a kind."""
    names = [kind.parameter]
    if kind.parameter.startswith("re:"):
        # Hooks of pruning and the like leave what they compute among other attributes.
        computed: Any = module.parametrizations if parametrize.is_parametrized(module) else ()
        there = dict.fromkeys((*module._parameters, *computed, *vars(module)))
        names = [name for name in there if _is_of(kind, name)]
    return [found for name in names if (found := _there(module, name)) is not None]


def _there(module: nn.Module, name: str) -> str | None:
    """The parameter of a name, or that from which hooks unknown here compute it."""
    path, _, parameter = name.rpartition(".")
    owner: Any = module
    for step in filter(None, path.split(".")):
        owner = getattr(owner, step, None)
    if not isinstance(owner, nn.Module) or isinstance(owner, CodedWeight):
        return None
    if owner._parameters.get(parameter) is not None:
        return name  # what is computed, or coded, is none of them
    if parameter in coded_parameters(owner):
        return None
    if is_computed(owner, parameter):
        return name
    if parameter in owner._parameters:
        return None
    value = getattr(owner, parameter, None)
    shape = value.shape if isinstance(value, Tensor) else None
    parts = [
        other
        for other, part in owner._parameters.items()
        if other.startswith(f"{parameter}_")
        and part is not None
        and not is_lazy(part)
        and part.dim() >= 2
        and shape in (None, part.shape)
    ]
    if len(parts) == 1 and parameter not in owner._buffers:
        return f"{path}.{parts[0]}" if path else parts[0]
    return None if shape is None else name


def slot_names(owners: Iterable[str], module: nn.Module, parameter: str) -> Iterator[str]:
    """What the slot of a parameter goes by, if its module has the names ``owners``."""
    parameters = [kind.parameter for kind in slot_kinds(type(module)) if "." not in kind.parameter]
    if parameters == [parameter]:
        yield from owners
    for owner in owners:
        yield f"{owner}.{parameter}" if owner else parameter
