"""Everything that a host left undone without a word, as an error."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import nn
from torch.nn.utils import parametrize

from vq_plugin.nn import (
    CodebookLayer,
    coded_parameters,
    coded_weights,
    layer_types,
    slot_kinds,
)
from vq_plugin.nn.shallow_copy import shallow_copy
from vq_plugin.select import Schemes, as_patterns, select, slots_by_name


def check_schemes(
    converted: nn.Module,
    schemes: Schemes,
    *,
    host: str,
    float_type: Callable[[nn.Module], type[nn.Module] | None],
    functions: Mapping[str, type[nn.Module]],
    why_not: Callable[[str], str],
) -> None:
    """Holds a converted model against the schemes that its host was given.

    Args:
        converted: What the host returned.
        schemes: One scheme, or patterns to schemes.
        host: Name of the host.
        float_type: The float layer that one of the host's own layers was, ``None`` for others.
        functions: Float layers that are no modules any more, by name.
        why_not: Says of a module by its name what it is instead, why, and what to do.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, or a layer has no or another scheme than asked
            for; the message names every such layer.
    """
    twin = _float_twin(converted, float_type)
    for name, kind in functions.items():
        path, _, leaf = name.rpartition(".")
        owner = twin.get_submodule(path)
        # It may be a parameter of a module that goes on.
        owner._parameters = {k: v for k, v in owner._parameters.items() if k != leaf}
        owner._modules[leaf] = _empty(kind)
    asked = select(twin, _layer_patterns(schemes))
    slots = slots_by_name(twin, asked)
    coded = {name: weight.scheme for name, weight in coded_weights(converted).items()}
    remedy = f"give the check the schemes that {host} got"
    problems = []
    for name, scheme in asked.items():
        if name not in coded:
            module = next(iter(slots[name].module_names), name.rpartition(".")[0])
            problems.append(f"{name!r}: asked for {scheme} but {why_not(module)}")
        elif coded[name] != scheme:
            problems.append(f"{name!r}: asked for {scheme} but it has {coded[name]}; {remedy}")
    for name, scheme in coded.items():
        if name not in asked:
            problems.append(f"{name!r}: not asked for but it has {scheme}; {remedy}")
    if problems:
        raise ValueError(f"{host} did not do what was asked for:\n  " + "\n  ".join(problems))


def _float_twin(
    converted: nn.Module, float_type: Callable[[nn.Module], type[nn.Module] | None]
) -> nn.Module:
    """Has empty float layers: ``select`` then decides by names and classes, as for ``compress``."""
    twins: dict[nn.Module, nn.Module] = {}

    def twin_of(module: nn.Module) -> nn.Module:
        if module not in twins:
            kind = module.float_type if isinstance(module, CodebookLayer) else float_type(module)
            twins[module] = _uncoded(module) if kind is None else _empty(kind)
            if kind is None:
                for name, child in twins[module].named_children():
                    twins[module]._modules[name] = twin_of(child)
        return twins[module]

    return twin_of(converted)


def _uncoded(module: nn.Module) -> nn.Module:
    """A copy that shares all but codes in the place of parameters, which are empty ones again."""
    twin = shallow_copy(module)
    coded = coded_parameters(module)
    if coded:
        twin.__class__ = parametrize.type_before_parametrizations(module)
        twin._modules.pop("parametrizations")
        empty = {name: nn.Parameter(torch.empty(0, 0)) for name in coded}
        twin._parameters = {**module._parameters, **empty}
    return twin


def _empty(kind: type[nn.Module]) -> nn.Module:
    module: nn.Module = kind.__new__(kind)
    nn.Module.__init__(module)
    for slot in slot_kinds(kind):
        # Others are patterns, or parameters of submodules, which are not there.
        if slot.parameter.isidentifier():
            setattr(module, slot.parameter, torch.empty(0, 0))
    return module


def _layer_patterns(schemes: Schemes) -> Schemes:
    """Without what a converted model cannot match: other modules are folded away or fused."""

    def is_layer(kind: type[nn.Module]) -> bool:
        return any(issubclass(k, kind) or issubclass(kind, k) for k in layer_types().values())

    return {
        pattern: scheme
        for pattern, scheme in as_patterns(schemes).items()
        if scheme is not None or isinstance(pattern, str) or is_layer(pattern)
    }
