"""What keys of a recipe have in common, and their values: references, schemes, layers."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Mapping
from typing import Annotated, Any, TypeAlias, TypeVar

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    PlainValidator,
    TypeAdapter,
    WithJsonSchema,
)

from vq_plugin.factors import Factor, parse_factor
from vq_plugin.factors.factors import FACTORS
from vq_plugin.nn import layer_types
from vq_plugin.schemes import PRESETS, SCHEMES, Scheme, parse_scheme
from vq_plugin.select import Form, parse_form

Choice: TypeAlias = Form | list[Form | None] | None
"""What may become of a layer: a form or ``None`` fixes it, a list is its search space."""

T = TypeVar("T")

_REFERENCE = r"^[\w.-]+:\w+$"
_SCHEME = r"^\s*(?:(?:{})\s*\([^)]*\)\s*\+\s*)?(?:{})\s*(?:\([\s\S]*\))?\s*$".format(
    *(
        "|".join("".join(f"[{c.upper()}{c}]" for c in method) for method in methods)
        for methods in (FACTORS, SCHEMES)
    )
)


class Keys(BaseModel):
    """A mapping of a recipe."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


def show(value: object) -> str:
    """A value of a recipe as an error message shows it."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping):
        return "a mapping"
    if isinstance(value, list):
        return "a list"
    return repr(value) if isinstance(value, str) else str(value).lower()


def check_reference(value: object) -> object:
    """Gives a text of the form ``"module:function"`` back; ValueError for any other."""
    if not isinstance(value, str) or not re.fullmatch(_REFERENCE, value):
        hint = ""
        if isinstance(value, str) and "/" in value:
            hint = "; a module is written as where it is imported, with dots"
        raise ValueError(f"expected a function as 'module:function', got {show(value)}{hint}")
    return value


def _read_text(value: object, kind: str, parse: Callable[[str], T]) -> T | None:
    """What a text stands for; ValueError for what is neither a text nor null."""
    if value is None:
        return None
    if not isinstance(value, str):
        raise ValueError(f"{kind} or null, got {show(value)}")
    return parse(value)


def _read_entry(value: object) -> Form | None:
    return _read_text(value, "a scheme is a text such as 'pq(k=16,dim=4)'", _parse_entry)


def _parse_entry(text: str) -> Form:
    """A form from its text; words that mean something elsewhere are told from unknown ones."""
    word = text.strip().lower()
    if word == "none":
        raise ValueError(f"{text!r} is written null, which leaves layers in float")
    if word in PRESETS:
        raise ValueError(
            f"{text!r} is a preset, which vq.compress takes; a search finds by itself what each "
            "layer needs: list schemes, or leave the key out for those that are built in"
        )
    return parse_form(text)


def _read_choice(value: object) -> Choice:
    if not isinstance(value, list):
        return _read_entry(value)
    if all(entry is None for entry in value):
        raise ValueError("the list names no scheme; write null to leave the layers as they are")
    # The adapter's own error keeps the place of each wrong entry, and so its line.
    return _ENTRIES.validate_python(value)


def _read_factor(value: object) -> Factor | None:
    return _read_text(value, "a factor is a text such as 'basis(d=5)'", parse_factor)


def _read_scheme(value: object) -> Scheme | None:
    return _read_text(value, "a scheme is a text such as 'pq(k=16,dim=4)'", parse_scheme)


def _check_type(name: str) -> str:
    if name not in layer_types():
        near = difflib.get_close_matches(name, layer_types(), n=1)
        hint = f"did you mean {near[0]!r}? " if near else ""
        raise ValueError(
            f"{name!r} is no layer type; {hint}known: {', '.join(layer_types())}; "
            "names of layers go under op_wise"
        )
    return name


def _check_name(name: str) -> str:
    if name == "*":
        raise ValueError("'*' stands for all layers; write it as model_wise")
    if name.startswith("re:"):
        try:
            re.compile(name.removeprefix("re:"))
        except re.error as error:
            raise ValueError(f"{name!r} is not a regular expression: {error}") from None
    return name


_ENTRY: dict[str, Any] = {
    "type": ["string", "null"],
    "description": "A scheme, or null for 'leave it in float'.",
    "pattern": _SCHEME,
    "examples": [
        "km(k=16)",
        "pq(k=16,dim=4)",
        "pq(k=256,dim=8,codebooks=tensor)",
        "rq(k=256,stages=2,dim=none)",
        "binary(scale=row)",
        "svd(rate=8)+km(k=16)",
    ],
}
_CHOICE = {"anyOf": [_ENTRY, {"type": "array", "minItems": 1, "items": _ENTRY}]}

_ENTRIES: TypeAdapter[list[Form | None]] = TypeAdapter(
    list[Annotated[Form | None, PlainValidator(_read_entry)]]
)

Reference = Annotated[
    str,
    BeforeValidator(check_reference),
    WithJsonSchema({"type": "string", "pattern": _REFERENCE, "examples": ["my_package:function"]}),
]
SchemeChoice = Annotated[Choice, PlainValidator(_read_choice), WithJsonSchema(_CHOICE)]
VectorChoice = Annotated[
    Scheme | None,
    PlainValidator(_read_scheme),
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "description": "PQ without row scales, or null for single numbers.",
            "examples": ["pq(k=16,dim=4,codebooks=tensor)"],
        }
    ),
]
FactorChoice = Annotated[
    Factor | None,
    PlainValidator(_read_factor),
    WithJsonSchema(
        {
            "type": ["string", "null"],
            "description": "A factor, or null for 'leave it whole'.",
            "examples": ["basis(d=5)", "svd(rate=4)"],
        }
    ),
]
# Editors know the layers of torch; a user's own are taken, too.
_TORCH_LAYERS = [n for n, cls in layer_types().items() if cls.__module__.startswith("torch.nn.")]
LayerType = Annotated[
    str,
    AfterValidator(_check_type),
    WithJsonSchema({"type": "string", "enum": _TORCH_LAYERS}),
]
LayerName = Annotated[str, AfterValidator(_check_name)]
