"""Which layers get which scheme."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

from torch import nn

from vq_plugin.nn import CODEBOOK_LAYERS, CodebookLayer, codebook_type
from vq_plugin.schemes import Scheme

Pattern: TypeAlias = str | type[nn.Module]
Schemes: TypeAlias = Scheme | Mapping[Pattern, Scheme | None]


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
    found = _modules(model)
    patterns = as_patterns(schemes)
    matches = {pattern: [f for f in found if _matches(pattern, f)] for pattern in patterns}
    for pattern, scheme in patterns.items():
        _check_pattern(pattern, scheme, matches[pattern], found)
    chosen: dict[str, Scheme] = {}
    for entry in found:
        if codebook_type(entry.module) is None:
            continue
        own = [pattern for pattern in patterns if entry in matches[pattern]]
        if own:
            scheme = patterns[min(own, key=_specificity)]
            if scheme is not None:
                chosen[entry.names[0]] = scheme
    return chosen


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
        if not isinstance(pattern, str) and not (
            isinstance(pattern, type) and issubclass(pattern, nn.Module)
        ):
            raise TypeError(f"a pattern is a name, 're:…', a module class or '*', got {pattern!r}")
        if scheme is not None and not isinstance(scheme, Scheme):
            raise TypeError(
                f"pattern {pattern!r}: expected a scheme such as vq.PQ() or None, got {scheme!r}; "
                "vq.parse_scheme reads one from text"
            )
    return schemes


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
    pattern: Pattern, scheme: Scheme | None, matched: list[_Found], found: list[_Found]
) -> None:
    if not matched:
        raise ValueError(_matches_nothing(pattern, found))
    if scheme is None or any(codebook_type(entry.module) is not None for entry in matched):
        return
    if all(isinstance(entry.module, CodebookLayer) for entry in matched):
        raise ValueError(f"{_show(pattern)}: already compressed ({matched[0].names[0]!r})")
    raise ValueError(f"{_show(pattern)}: {matched[0].names[0]!r} {_reason(matched[0].module)}")


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
