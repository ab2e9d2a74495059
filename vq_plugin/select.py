"""Which layers get which scheme."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from typing import TypeAlias, TypeVar

from torch import nn

from vq_plugin.arguments import brief
from vq_plugin.factors import Factored
from vq_plugin.factors.factors import FACTORS
from vq_plugin.nn import (
    CodedWeight,
    Slot,
    coded_parameters,
    find_slots,
    layer_types,
    other_parameters,
)
from vq_plugin.nn.graphs import graph_hint
from vq_plugin.schemes import PRESETS, Preset, Scheme, parse_scheme

T = TypeVar("T")
Pattern: TypeAlias = str | type[nn.Module]
# Behind the rank of every pattern that matches.
_LAST = 5

#: A scheme may be written as text, such as ``"pq(k=16,dim=4)"``.
Schemes: TypeAlias = Scheme | str | Mapping[Pattern, Scheme | str | None]
#: What one layer may become: codes of its weight, or of two factors.
Form: TypeAlias = Scheme | Factored
#: As schemes, with factors and presets, or their names, wherever a scheme may stand.
Choice: TypeAlias = Form | Preset | str
Choices: TypeAlias = Choice | Mapping[Pattern, Choice | None]


class NoMatchError(ValueError):
    """A pattern that matches nothing."""

    def __init__(self, pattern: Pattern, text: str) -> None:
        super().__init__(text)
        self.pattern = pattern


def select(model: nn.Module, schemes: Schemes) -> dict[str, Scheme]:
    """Resolves patterns to the weights of a model, its slots (:mod:`vq_plugin.nn.slots`).

    The most specific pattern decides: an exact name of a weight, then that of its module, then
    ``"re:…"`` (the whole name of either must match; of several patterns the first given), then a
    class (subclasses match too), then ``"*"``. ``None`` leaves a weight alone, as does no pattern.
    A parameter that has no slot is reached by its full name, exact or ``"re:…"``.

    Args:
        model: The float model.
        schemes: One scheme for every slot, or patterns to schemes; schemes may be texts.

    Returns:
        Scheme of every chosen slot, by its name, in the order of the model.

    Raises:
        TypeError: If the model, a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, or only modules that cannot be compressed.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> select(model, {"2": vq.PQ(), "*": None})
        {'2': PQ(k=16, dim=4)}
    """
    return _selected(model, as_patterns(schemes))


def select_choices(model: nn.Module, schemes: Choices) -> dict[str, Form | Preset]:
    """As :func:`select`, with factors and presets where they stand."""
    return _selected(model, as_choices(schemes))


def _selected(model: nn.Module, patterns: Mapping[Pattern, T | None]) -> dict[str, T]:
    leaving = {pattern for pattern, choice in patterns.items() if choice is None}
    owners = match(model, patterns, leaving)
    chosen = {name: patterns[pattern] for name, pattern in owners.items()}
    return {name: choice for name, choice in chosen.items() if choice is not None}


def match(
    model: nn.Module, patterns: Iterable[Pattern], leaving: Collection[Pattern] = ()
) -> dict[str, Pattern]:
    """The most specific pattern of every slot that any matches, in the order of the model.

    :func:`select` has the rules, and what is raised. Patterns that are ``leaving`` ask for nothing,
    and hence may match what cannot be compressed.
    """
    check_model(model)
    found = find_slots(model)
    slots, others = list(found.values()), list(other_parameters(model, found).values())
    modules = _modules(model)
    owners: dict[str, Pattern] = {}
    ranks: dict[str, int] = {}
    silent: list[Pattern] = []
    for pattern in patterns:
        ranked = [(slot, _rank(pattern, slot)) for slot in slots]
        if isinstance(pattern, str) and pattern != "*":
            ranked += [(slot, _rank(pattern, slot)) for slot in others]
        matched = [(slot, rank) for slot, rank in ranked if rank is not None]
        if not matched:
            _check_modules(pattern, pattern in leaving, modules, slots, others)
            silent.append(pattern)
        for slot, rank in matched:
            if rank < ranks.get(slot.name, _LAST):
                owners[slot.name], ranks[slot.name] = pattern, rank
    chosen = {n for n, pattern in owners.items() if pattern not in leaving}
    for pattern in silent:
        _warn_of_containers(pattern, modules, [s for s in slots if s.name in chosen])
    order = [slot.name for slot in (*slots, *others) if slot.name in owners]
    return {name: owners[name] for name in order}


def slots_by_name(model: nn.Module, names: Iterable[str]) -> dict[str, Slot]:
    """The slots that :func:`match` and :func:`select` named, in the order of the names."""
    slots = slots_by_any_name(model)
    return {name: slots[name] for name in names}


def slots_by_any_name(model: nn.Module) -> dict[str, Slot]:
    """Every slot of a model, and every other parameter that can be coded, by all of its names."""
    found = find_slots(model)
    slots = (*other_parameters(model, found).values(), *found.values())
    return {name: slot for slot in slots for name in slot.names}


def _modules(model: nn.Module) -> dict[nn.Module, tuple[str, ...]]:
    """Every name that a module goes by; one that is used twice has two."""
    names: dict[nn.Module, tuple[str, ...]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names[module] = (*names.get(module, ()), name)
    return names


def as_patterns(schemes: Choices) -> Mapping[Pattern, Scheme | None]:
    """As :func:`as_choices`, but ``TypeError`` for factors and presets, too."""
    patterns: dict[Pattern, Scheme | None] = {}
    for pattern, choice in as_choices(schemes).items():
        form = no_preset(pattern, choice)
        if isinstance(form, Factored):
            raise TypeError(
                f"{_show(pattern)}: {form} stands where a scheme is needed, which codes a layer "
                f"that is there; factorize the model first: vq.factorize(model, "
                f"{{...: {form.factor!r}}}), then give its layers {form.scheme}"
            )
        patterns[pattern] = form
    return patterns


def no_preset(pattern: Pattern, choice: Form | Preset | None) -> Form | None:
    """What a pattern chooses; ``TypeError`` for a preset."""
    if isinstance(choice, Preset):
        raise TypeError(
            f"pattern {pattern!r}: a preset stands where a scheme is needed; "
            "vq.choose_schemes(model, ...) gives the schemes that it stands for"
        )
    return choice


def as_choices(schemes: Choices) -> Mapping[Pattern, Form | Preset | None]:
    """A setting as a mapping, ``{"*": scheme}`` for one scheme; ``TypeError`` for wrong types."""
    if isinstance(schemes, Scheme | Factored | Preset | str):
        return {"*": read_choice("*", schemes)}
    if not isinstance(schemes, Mapping):
        raise TypeError(
            "schemes must be a scheme, a preset or a mapping of patterns to them, got "
            f"{brief(schemes)}"
        )
    for pattern in schemes:
        check_pattern_type(pattern)
    return {pattern: read_choice(pattern, choice) for pattern, choice in schemes.items()}


def read_choice(pattern: Pattern, choice: object) -> Form | Preset | None:
    """A scheme, factors, a preset or ``None``, also from text; TypeError or ValueError else."""
    if choice is None or isinstance(choice, Scheme | Factored | Preset):
        return choice
    expected = (
        f"{_show(pattern)}: expected a scheme such as vq.PQ() or 'pq(k=16,dim=4)', a preset ("
        f"{', '.join(map(repr, PRESETS))}), 'svd(rate=8)+km(k=16)' or None"
    )
    if not isinstance(choice, str):
        raise TypeError(f"{expected}, got {brief(choice)}")
    if choice in PRESETS:
        return PRESETS[choice]
    try:
        return parse_form(choice)
    except ValueError as error:
        raise ValueError(f"{expected}; {error}") from None


def parse_form(text: str) -> Form:
    """Reads a scheme, or factors and theirs; ``ValueError`` for a text that is neither."""
    joint = Factored.parse(text)
    if joint is None and text.partition("(")[0].strip() in FACTORS:
        raise ValueError(f"{text} is of no scheme: add one, such as '{text}+km(k=16)'")
    return joint or parse_scheme(text)


def check_model(model: object, name: str = "the model") -> None:
    """Raises ``TypeError`` for what is no module of torch, such as an exported program."""
    if not isinstance(model, nn.Module):
        hint = "; compress the float model, and export the result" * hasattr(model, "graph_module")
        if isinstance(model, Mapping):
            hint = "; a state_dict has no layers: load it into the model with load_state_dict"
        raise TypeError(f"{name} is a {type(model).__name__}, no torch.nn.Module{hint}")


def asks_for_all(schemes: Choices) -> bool:
    """Whether a setting asks for every weight that nothing else is said of."""
    return as_choices(schemes).get("*") is not None


def leaves(schemes: Choices, name: str) -> bool:
    """Whether a setting says by name that a parameter is to be left in float."""
    return any(
        scheme is None
        and isinstance(pattern, str)
        and pattern != "*"
        and (pattern == name or (pattern.startswith("re:") and _compiled(pattern).fullmatch(name)))
        for pattern, scheme in as_choices(schemes).items()
    )


def check_pattern_type(pattern: object) -> None:
    """Raises ``TypeError`` for what is neither a text nor a module class."""
    if not isinstance(pattern, str) and not (
        isinstance(pattern, type) and issubclass(pattern, nn.Module)
    ):
        raise TypeError(f"a pattern is a name, 're:…', a module class or '*', got {brief(pattern)}")


def _rank(pattern: Pattern, slot: Slot) -> int | None:
    """How specific the pattern is for a slot, the most at 0; ``None`` if it does not match."""
    if isinstance(pattern, type):
        return 3 if isinstance(slot.module, pattern) or isinstance(slot.host, pattern) else None
    if pattern == "*":
        return 4
    if pattern.startswith("re:"):
        expression = _compiled(pattern)
        return 2 if any(map(expression.fullmatch, (*slot.names, *slot.module_names))) else None
    if pattern in slot.names:
        return 0
    return 1 if pattern in slot.module_names else None


def _module_matches(pattern: Pattern, module: nn.Module, names: tuple[str, ...]) -> bool:
    if isinstance(pattern, type):
        return isinstance(module, pattern)
    if pattern.startswith("re:"):
        return any(map(_compiled(pattern).fullmatch, names))
    return pattern in names


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def _check_modules(
    pattern: Pattern,
    leaves: bool,
    modules: Mapping[nn.Module, tuple[str, ...]],
    slots: list[Slot],
    others: list[Slot],
) -> None:
    """Says why a pattern matches no slot, unless it only leaves modules alone."""
    matched = [
        (module, names[0])
        for module, names in modules.items()
        if _module_matches(pattern, module, names)
    ]
    coded = [name for module, name in matched if _holds_codes(module)]
    if not matched:
        raise NoMatchError(pattern, _matches_nothing(pattern, modules, slots, others))
    if leaves:
        return
    if coded:
        raise ValueError(f"{_show(pattern)}: already compressed ({coded[0]!r})")
    module, name = matched[0]
    hint = next(filter(None, map(graph_hint, (module, *modules))), None)
    inside = {slot.name: None for slot in slots if slot.module in {*module.modules()}}
    if inside and hint is None:
        hint = f"name the layers in it: {', '.join([*inside][:3])}"
    raise ValueError(
        f"{_show(pattern)}: {name!r} cannot be compressed: it is a {type(module).__name__}, which "
        "has no slot; "
        + (hint or "name one of its parameters, or register it with vq.register_slot")
    )


def _holds_codes(module: nn.Module) -> bool:
    return isinstance(module, CodedWeight) or bool(coded_parameters(module))


def _warn_of_containers(
    pattern: Pattern, modules: Mapping[nn.Module, tuple[str, ...]], chosen: list[Slot]
) -> None:
    """Leaving a module does not leave the layers in it, which may not be what was meant."""
    for module, names in modules.items():
        if not _module_matches(pattern, module, names):
            continue
        if {slot.module for slot in chosen} & set(module.modules()):
            inside = f"re:{re.escape(names[0])}.*"
            warnings.warn(
                f"{_show(pattern)} leaves nothing: {names[0]!r} is no layer, and other "
                f"patterns choose layers in it; leave those with {inside!r}",
                stacklevel=4,
            )


def _matches_nothing(
    pattern: Pattern,
    modules: Mapping[nn.Module, tuple[str, ...]],
    slots: list[Slot],
    others: list[Slot],
) -> str:
    nothing = f"{_show(pattern)} matches nothing"
    if not slots and any(map(_holds_codes, modules)):
        return f"{nothing}: the model's layers are compressed already"
    hint = next(filter(None, map(graph_hint, modules)), None)
    if not slots and hint:
        return f"{nothing}: {hint}"
    names = list(dict.fromkeys(n for slot in slots for n in (slot.name, *slot.module_names)))
    names += [slot.name for slot in others]
    if not slots and (pattern == "*" or not names or isinstance(pattern, type)):
        known = f"{nothing}: the model has no {', '.join(layer_types())} layer, nor one that "
        known += "vq.register_slot knows"
        return f"{known}; its parameters can be named: {', '.join(names[:3])}" if names else known
    if isinstance(pattern, type):
        kinds = sorted({type(slot.module).__name__ for slot in slots})
        return f"{nothing}; the model's layers are of {', '.join(kinds)}"
    if expression := _as_expression(pattern, names):
        return f"{nothing}; a regular expression is written {expression!r}"
    near = difflib.get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.4)
    return f"{nothing}; the nearest names are {', '.join(near or names[:3])}"


def _as_expression(name: str, names: Iterable[str]) -> str | None:
    """The pattern that was meant by one that is a regular expression, or as of file names."""
    if name.startswith("re:"):
        return None
    # A star that follows no dot stands for letters, as it does in names of files.
    for text in (name, re.sub(r"(?<!\.)\*", ".*", name).replace("?", ".")):
        with suppress(re.error):
            if any(map(re.compile(text).fullmatch, names)):
                return f"re:{text}"
    return None


def _show(pattern: Pattern) -> str:
    return f"pattern {pattern!r}" if isinstance(pattern, str) else f"pattern {pattern.__name__}"
