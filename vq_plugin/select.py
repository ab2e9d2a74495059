"""Which layers get which scheme."""

from __future__ import annotations

import difflib
import re
import warnings
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from vq_plugin.nn import CODEBOOK_LAYERS, CodebookLayer, codebook_type
from vq_plugin.schemes import Scheme

Pattern: TypeAlias = str | type[nn.Module]
Schemes: TypeAlias = Scheme | Mapping[Pattern, Scheme | None]


class NoMatchError(ValueError):
    """A pattern that matches nothing.

    Attributes:
        pattern: The pattern.
    """

    def __init__(self, pattern: Pattern, text: str) -> None:
        super().__init__(text)
        self.pattern = pattern


@dataclass(frozen=True)
class _Found:
    """A module and every name it goes by; a module used twice has two."""

    names: tuple[str, ...]
    module: nn.Module


def select(model: nn.Module, schemes: Schemes) -> dict[str, Scheme]:
    """Resolves patterns to layers.

    The most specific pattern decides: an exact name, then ``"re:…"`` (the whole name must match;
    of several the first given), then a class (subclasses match too), then ``"*"``. ``None``
    leaves a layer alone, as does no pattern.

    Args:
        model: The float model.
        schemes: One scheme for every layer that has a codebook layer, or patterns to schemes.

    Returns:
        Scheme of every chosen layer, by its (first) name, in the order of the model.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, or only modules that cannot be compressed.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Conv2d(1, 8, 3), nn.Flatten(), nn.Linear(8, 10))
        >>> select(model, {"2": vq.PQ(), "*": None})
        {'2': PQ(k=16, dim=4)}
    """
    patterns = as_patterns(schemes)
    leaving = {pattern for pattern, scheme in patterns.items() if scheme is None}
    owners = match(model, patterns, leaving)
    chosen = {name: patterns[pattern] for name, pattern in owners.items()}
    return {name: scheme for name, scheme in chosen.items() if scheme is not None}


def match(
    model: nn.Module, patterns: Iterable[Pattern], leaving: Collection[Pattern] = ()
) -> dict[str, Pattern]:
    """Which pattern decides about which layer; :func:`select` has the rules.

    Args:
        model: The float model.
        patterns: Names, ``"re:…"``, classes and ``"*"``.
        leaving: Those that ask for nothing, and hence may match what cannot be compressed.

    Returns:
        The most specific pattern of every layer that has a codebook layer and is matched, by its
        (first) name, in the order of the model.

    Raises:
        ValueError: If a pattern matches nothing, or only modules that cannot be compressed.
    """
    found = _modules(model)
    matches = {pattern: [f for f in found if _matches(pattern, f)] for pattern in patterns}
    for pattern, matched in matches.items():
        _check_pattern(pattern, pattern in leaving, matched, found)
    owners: dict[str, Pattern] = {}
    for entry in found:
        if codebook_type(entry.module) is None:
            continue
        own = [pattern for pattern, matched in matches.items() if entry in matched]
        if own:
            owners[entry.names[0]] = min(own, key=_specificity)
    chosen = {e.module for e in found if owners.get(e.names[0]) not in (None, *leaving)}
    for pattern in leaving:
        _warn_of_containers(pattern, matches.get(pattern, []), chosen)
    return owners


def _modules(model: nn.Module) -> list[_Found]:
    names: dict[nn.Module, list[str]] = {}
    for name, module in model.named_modules(remove_duplicate=False):
        names.setdefault(module, []).append(name)
    return [_Found(tuple(own), module) for module, own in names.items()]


def as_patterns(schemes: Schemes) -> Mapping[Pattern, Scheme | None]:
    """A setting as a mapping; one scheme stands for ``{"*": scheme}``.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
    """
    if isinstance(schemes, Scheme):
        return {"*": schemes}
    if not isinstance(schemes, Mapping):
        raise TypeError(
            f"schemes must be a scheme or a mapping of patterns to schemes, got {schemes!r}"
        )
    for pattern, scheme in schemes.items():
        check_pattern_type(pattern)
        if scheme is not None and not isinstance(scheme, Scheme):
            raise TypeError(
                f"pattern {pattern!r}: expected a scheme such as vq.PQ() or None, got {scheme!r}; "
                "vq.parse_scheme reads one from text"
            )
    return schemes


def check_pattern_type(pattern: object) -> None:
    """Raises ``TypeError`` for what is neither a text nor a module class."""
    if not isinstance(pattern, str) and not (
        isinstance(pattern, type) and issubclass(pattern, nn.Module)
    ):
        raise TypeError(f"a pattern is a name, 're:…', a module class or '*', got {pattern!r}")


def _matches(pattern: Pattern, found: _Found) -> bool:
    if isinstance(pattern, type):
        return isinstance(found.module, pattern)
    if pattern == "*":
        return codebook_type(found.module) is not None
    if pattern.startswith("re:"):
        expression = _compiled(pattern)
        return any(expression.fullmatch(name) for name in found.names)
    return pattern in found.names


def _compiled(pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(pattern.removeprefix("re:"))
    except re.error as error:
        raise ValueError(f"pattern {pattern!r} is not a regular expression: {error}") from None


def _specificity(pattern: Pattern) -> int:
    if isinstance(pattern, type):
        return 2
    return 3 if pattern == "*" else 1 if pattern.startswith("re:") else 0


def _check_pattern(
    pattern: Pattern, leaves: bool, matched: list[_Found], found: list[_Found]
) -> None:
    if not matched:
        raise NoMatchError(pattern, _matches_nothing(pattern, found))
    if leaves or any(codebook_type(entry.module) is not None for entry in matched):
        return
    if all(isinstance(entry.module, CodebookLayer) for entry in matched):
        raise ValueError(f"{_show(pattern)}: already compressed ({matched[0].names[0]!r})")
    raise ValueError(f"{_show(pattern)}: {matched[0].names[0]!r} {_reason(matched[0].module)}")


def _warn_of_containers(pattern: Pattern, matched: list[_Found], chosen: set[nn.Module]) -> None:
    """Leaving a module does not leave the layers in it, which may not be what was meant."""
    if any(codebook_type(entry.module) is not None for entry in matched):
        return
    for entry in matched:
        if chosen & set(entry.module.modules()):
            inside = f"re:{re.escape(entry.names[0])}.*"
            warnings.warn(
                f"{_show(pattern)} leaves nothing: {entry.names[0]!r} is no layer, and other "
                f"patterns choose layers in it; leave those with {inside!r}",
                stacklevel=4,
            )


def _reason(module: nn.Module) -> str:
    kind = type(module).__name__
    for base in CODEBOOK_LAYERS:
        if isinstance(module, base):
            return (
                f"cannot be compressed: {kind} is a {base.__name__} with its own forward(), "
                "which a codebook layer would lose"
            )
    supported = ", ".join(base.__name__ for base in CODEBOOK_LAYERS)
    return f"cannot be compressed: it is a {kind}, and codebooks replace {supported}"


def _matches_nothing(pattern: Pattern, found: list[_Found]) -> str:
    layers = [e for e in found if codebook_type(e.module) is not None]
    if not layers and any(isinstance(e.module, CodebookLayer) for e in found):
        return f"{_show(pattern)} matches nothing: the model's layers are compressed already"
    if not layers:
        supported = ", ".join(base.__name__ for base in CODEBOOK_LAYERS)
        return f"{_show(pattern)} matches nothing: the model has no {supported} layer"
    if isinstance(pattern, type):
        kinds = sorted({type(e.module).__name__ for e in layers})
        return f"{_show(pattern)} matches nothing; the model's layers are of {', '.join(kinds)}"
    names = [name for e in layers for name in e.names]
    near = difflib.get_close_matches(pattern.removeprefix("re:"), names, n=3, cutoff=0.4)
    return f"{_show(pattern)} matches nothing; the nearest names are {', '.join(near or names[:3])}"


def _show(pattern: Pattern) -> str:
    return f"pattern {pattern!r}" if isinstance(pattern, str) else f"pattern {pattern.__name__}"
