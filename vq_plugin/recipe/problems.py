"""From an error of the validation to a sentence with a remedy."""

from __future__ import annotations

import difflib
import re
from collections.abc import Iterator, Sequence
from typing import Any, get_args, get_origin

from pydantic import BaseModel
from pydantic_core import ErrorDetails

from vq_plugin.recipe.fields import show
from vq_plugin.recipe.inc_habits import remedy
from vq_plugin.recipe.schema import Recipe


def describe(error: ErrorDetails) -> str:
    """What is wrong with a recipe, and what to do: a sentence that begins with the key."""
    location, kind = error["loc"], error["type"]
    if kind in ("extra_forbidden", "invalid_key"):
        return _unknown(location)
    if kind == "missing":
        return _missing(location)
    if location[-1:] == ("[key]",):
        place = key_text(location[:-2])
        if kind == "string_type":
            return f"{place}: the name {location[-2]} is a number; write it in quotes"
        return f"{place}: {_reason(error)}"
    # Their mappings stand where a text is expected here; a misspelt text is no such habit.
    habit = kind == "literal_error" or isinstance(error["input"], dict)
    advice = remedy(location) if habit else None
    return f"{key_text(location)}: {_reason(error)}" + (f"; {advice}" if advice else "")


def key_text(location: Sequence[int | str]) -> str:
    """A location as people write it.

    Example:
        >>> key_text(["quantization", "model_wise", "scheme", 2])
        'quantization.model_wise.scheme[2]'
    """
    text = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location)
    return text.removeprefix(".") or "recipe"


def _reason(error: ErrorDetails) -> str:
    kind, value = error["type"], error["input"]
    if kind in ("float_type", "int_type", "int_from_float"):
        return _not_a_number(value, whole=kind != "float_type")
    if kind == "bool_type":
        return f"expected true or false, got {show(value)}"
    if kind == "string_type":
        return f"expected a text, got {show(value)}; write it in quotes"
    if kind in ("model_type", "dict_type"):
        return _not_a_mapping(error["loc"], value)
    if kind == "string_too_short":
        return "expected a text, got an empty one; the current folder is '.'"
    if kind in ("greater_than_equal", "less_than") and error["loc"][-1] == "random_seed":
        return f"a seed has 64 bits, got {show(value)}"
    if kind == "list_type":
        entry = f" such as [{value}]" if isinstance(value, str) else ""
        return f"expected a list{entry}, got {show(value)}"
    if kind == "literal_error":
        return f"expected {error['ctx']['expected']}, got {show(value)}"
    if kind == "greater_than":
        return f"must be above 0, got {show(value)}; leave the key out for the default"
    return error["msg"].removeprefix("Value error, ")


def _not_a_number(value: object, whole: bool) -> str:
    sort = "a whole number such as 20" if whole else "a number such as 0.01"
    text = f"expected {sort}, got "
    if not isinstance(value, str):
        return text + show(value)
    number = re.fullmatch(r"([+-]?[\d.]+(?:[eE][+-]?\d+)?)\s*(%?)", value.strip())
    if number is None:
        return f"{text}the text {value!r}"
    if number[2]:
        return f"{text}the text {value!r}; 1 % is 0.01"
    return f"{text}the text {value!r}; remove the quotes"


def _not_a_mapping(location: Sequence[int | str], value: object) -> str:
    keys = _known_keys(location)
    below = f"with the keys {', '.join(keys)}" if keys else "of names"
    text = f"expected a mapping {below}, got {show(value)}"
    return f"{text}; indent its keys, or remove the line" if value is None else text


def _missing(location: Sequence[int | str]) -> str:
    model = _model_at(location[:-1])
    examples = model.model_fields[str(location[-1])].examples if model else None
    advice = f"; add for example '{location[-1]}: {_flow(examples[0])}'" if examples else ""
    return f"key {key_text(location)!r} is missing{advice}"


def _unknown(location: Sequence[int | str]) -> str:
    *parent, name = location
    text = f"unknown key {key_text(location)!r}; "
    advice = remedy(location)
    if advice:
        return text + advice
    known = _known_keys(parent)
    near = difflib.get_close_matches(str(name), known, n=1)
    places = [key_text(place) for place in _places(str(name))]
    if near:
        text += f"did you mean {near[0]!r}? "
    elif places:
        text += f"did you mean {places[0]!r}? "
    return f"{text}known here: {', '.join(known)}"


def _flow(value: object) -> str:
    if isinstance(value, dict):
        return "{" + ", ".join(f"{key}: {item}" for key, item in value.items()) + "}"
    return str(value)


def _known_keys(location: Sequence[int | str]) -> list[str]:
    model = _model_at(location)
    return list(model.model_fields) if model else []


def _model_at(location: Sequence[int | str]) -> type[BaseModel] | None:
    """The keys that are allowed below a location."""
    here: Any = Recipe
    for part in location:
        model = _as_model(here)
        if model is not None:
            field = model.model_fields.get(str(part))
            here = field.annotation if field else None
        else:
            here = get_args(here)[1] if get_origin(here) is dict else None
    return _as_model(here)


def _as_model(annotation: Any) -> type[BaseModel] | None:
    """The model itself or that of ``Model | None``; the values of a dict are a level below."""
    if get_origin(annotation) is dict:
        return None
    for part in (annotation, *get_args(annotation)):
        if isinstance(part, type) and issubclass(part, BaseModel):
            return part
    return None


def _places(name: str, location: tuple[str, ...] = ()) -> Iterator[tuple[str, ...]]:
    """Where a key of this name is allowed."""
    for key in _known_keys(location):
        if key == name:
            yield (*location, key)
        yield from _places(name, (*location, key))
