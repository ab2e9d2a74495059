"""One call of ``quantize_`` as a whole, checked before its first layer is changed.

Torchao hands its handlers one module after the other, without names and without the model. Errors
would then come when half of the model is changed already, and could not say where; and who shares a
weight with whom could not be known.
"""

from __future__ import annotations

import inspect
import threading
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias
from weakref import WeakKeyDictionary

from torch import nn
from torchao.core.config import AOBaseConfig
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.transform_module import register_quantize_module_handler

from vq_plugin.hosting.plan import Plan, shared_plans
from vq_plugin.nn import CodebookLayer, Slot, coded_parameters, find_slots, other_parameters
from vq_plugin.schemes import Scheme
from vq_plugin.select import slots_by_any_name
from vq_plugin.slot_fit import check_slot
from vq_plugin.torchao.config import VQWeightOnlyConfig
from vq_plugin.torchao.trained import prepared_weight

Filter: TypeAlias = Callable[[nn.Module, str], bool]
# The plan for each slot of a module, by its name there.
Plans: TypeAlias = dict[str, Plan]


@dataclass
class Visit:
    """One module that a handler is asked for; ``parameter`` is one that it is asked for alone."""

    module: nn.Module
    parameter: str | None
    config: VQWeightOnlyConfig

    def slots(self) -> dict[str, Slot]:
        """Its slots, by their names in the module, those of a part that it runs itself included."""
        found = find_slots(self.module)
        own = {
            name: slot
            for name, slot in found.items()
            if slot.module is self.module or slot.host is self.module
        }
        if self.parameter is None:
            return own
        candidates = {**own, **other_parameters(self.module, found)}
        return {
            name: slot
            for name, slot in candidates.items()
            if slot.module is self.module and slot.parameter == self.parameter
        }


@dataclass(eq=False)
class _Left:
    parameter: str | None
    config: VQWeightOnlyConfig
    plans: Plans


class Call:
    """What is left to do in a call of ``quantize_``."""

    def __init__(self, visits: list[Visit], plans: list[Plans]) -> None:
        # Weak: what the host never asks for must not be kept.
        self._left: WeakKeyDictionary[nn.Module, list[_Left]] = WeakKeyDictionary()
        for visit, its in zip(visits, plans, strict=True):
            left = _Left(visit.parameter, visit.config, its)
            self._left.setdefault(visit.module, []).append(left)

    def take(self, visit: Visit) -> Plans | None:
        """The plans for one visit, ``None`` if it is not of this call."""
        left = self._left.get(visit.module, [])
        for each in left:
            # Of a call that ended half-way something is left, and the next has other settings.
            if each.parameter == visit.parameter and each.config is visit.config:
                left.remove(each)
                return each.plans
        return None


class _Calls(threading.local):
    latest: Call | None = None


_calls = _Calls()


def plans_for(visit: Visit) -> Plans:
    """The plans for a module that a handler is asked for; the first one of a call checks all.

    ``ValueError`` names every module that cannot be served, and a weight that is shared with one
    that the call leaves.
    """
    plans = None if _calls.latest is None else _calls.latest.take(visit)
    if plans is None:
        _calls.latest = None
        call = _planned(*_arguments(visit))
        plans = call.take(visit)
        assert plans is not None
        _calls.latest = call
    return plans


def _arguments(visit: Visit) -> tuple[nn.Module, AOBaseConfig, Filter | None]:
    """Model, config and filter that ``quantize_`` was called with; its arguments by their names."""
    frame = inspect.currentframe()
    while frame is not None and frame.f_code is not quantize_.__code__:
        frame = frame.f_back
    if frame is None:
        # Somebody else asks the handler.
        return visit.module, visit.config, lambda module, _: module is visit.module
    given = frame.f_locals
    return given["model"], given["config"], given["filter_fn"]


@dataclass
class _Look(AOBaseConfig):  # type: ignore[misc]
    """In the place of a config, notes what its handler would be asked for."""

    config: AOBaseConfig
    seen: list[Visit] = field(default_factory=list)


@register_quantize_module_handler(_Look)  # type: ignore[untyped-decorator]
def _look(module: nn.Module, look: _Look, *, parameter_name: str | None = None) -> nn.Module:
    if isinstance(look.config, VQWeightOnlyConfig):
        look.seen.append(Visit(module, parameter_name, look.config))
    return module


def _visits(model: nn.Module, config: AOBaseConfig, filter_fn: Filter | None) -> list[Visit]:
    """The modules that the host is going to ask for, as it says itself."""
    seen: list[Visit] = []
    look: AOBaseConfig = _Look(config, seen)
    if isinstance(config, FqnToConfig):
        inner: Mapping[str, Any] = config.fqn_to_config
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # they were shown when the config was made
            look = FqnToConfig(
                type(config.fqn_to_config)(
                    (key, None if value is None else _Look(value, seen))
                    for key, value in inner.items()
                )
            )
    quantize_(model, look, filter_fn)
    return seen


def _planned(model: nn.Module, config: AOBaseConfig, filter_fn: Filter | None) -> Call:
    visits = _visits(model, config, filter_fn)
    whole = {(id(slot.module), slot.parameter): slot for slot in slots_by_any_name(model).values()}
    paths = {id(module): name for name, module in model.named_modules()}
    problems: list[str] = []
    chosen: dict[str, Scheme] = {}
    seeds: dict[str, int] = {}
    local: list[dict[str, str]] = []
    for visit in visits:
        slots = visit.slots()
        its = {name: whole[id(s.module), s.parameter] for name, s in slots.items()}
        local.append({name: slot.name for name, slot in its.items()})
        problem = _problem(visit, slots)
        if problem is not None:
            problems.append(f"{paths[id(visit.module)]!r} {problem}")
            continue
        for slot in its.values():
            check_slot(slot)
            chosen[slot.name], seeds[slot.name] = visit.config.layer_scheme, visit.config.seed
    if problems:
        hint = ""
        if isinstance(config, FqnToConfig):
            hint = "\n're:…' meets names of containers and of biases, too: 're:blocks[.]\\d+'"
        raise ValueError(
            "VQWeightOnlyConfig cannot serve what it is asked for:\n  "
            + "\n  ".join(problems)
            + hint
        )
    plans = shared_plans(model, chosen, seeds)
    return Call(visits, [{key: plans[name] for key, name in each.items()} for each in local])


def _problem(visit: Visit, slots: Mapping[str, Slot]) -> str | None:
    """Why a module cannot be served."""
    module = visit.module
    kind = type(module).__name__
    if isinstance(module, CodebookLayer) or (
        coded_parameters(module) and visit.parameter in (None, *coded_parameters(module))
    ):
        return f"is compressed already ({kind}): convert a fresh float model"
    if not slots:
        what = "no weight" if visit.parameter is None else f"no weight {visit.parameter!r}"
        return (
            f"is a {kind}, which has {what} that can be coded: let filter_fn choose layers such as "
            "Linear, Conv2d or Embedding, or register it with vq.register_slot"
        )
    prepared = prepared_weight(module)
    if visit.config.step == "prepare":
        return None if prepared is None else "is prepared already: quantize_ with step='convert'"
    if prepared is None:
        return None
    scheme = visit.config.layer_scheme
    if prepared.plan.scheme != scheme:
        return f"was prepared for {prepared.plan.scheme}, not for {scheme}: give both steps one"
    if visit.config.step is None:
        return "is prepared: quantize_ with step='convert'"
    if prepared.waits:
        return (
            "was prepared and saw no data: run batches through the model in eval mode, or train "
            "it, before step='convert'; step=None compresses without data"
        )
    return None
