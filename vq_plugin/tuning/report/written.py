"""Dataclasses as JSON, and as the JSON Schema of what they become.

Field by field and by the same names; schemes are texts, numbers that are not finite are null, and
of a result the model itself is left out.
"""

from __future__ import annotations

import inspect
import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import Field, fields, is_dataclass
from types import NoneType, UnionType
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from vq_plugin.schemes import Scheme
from vq_plugin.tuning.report.content import REPORT_VERSION, Report

_ATTRIBUTE = re.compile(r"^    (\w+): (.*(?:\n        .*)*)", re.MULTILINE)
_ROLE = re.compile(r":\w+:`~?([^`]*)`")
_PLAIN: dict[Any, dict[str, Any]] = {
    bool: {"type": "boolean"},
    int: {"type": "integer", "minimum": 0},
    float: {"type": ["number", "null"]},
    str: {"type": "string"},
    Scheme: {"type": "string"},
    NoneType: {"type": "null"},
}


def as_json(value: Any) -> Any:
    """What ``json.dumps`` takes for a value of a report.

    Example:
        >>> from vq_plugin.tuning.result import FrontierPoint
        >>> as_json(FrontierPoint(nbytes=100, harm=float("inf")))
        {'nbytes': 100, 'harm': None}
    """
    if isinstance(value, Scheme):
        return str(value)
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if is_dataclass(value):
        return {f.name: as_json(getattr(value, f.name)) for f in _written_fields(type(value))}
    if isinstance(value, Mapping):
        return {key: as_json(entry) for key, entry in value.items()}
    if isinstance(value, tuple | list):
        return [as_json(entry) for entry in value]
    return value


def json_schema() -> dict[str, Any]:
    """The JSON Schema (draft 2020-12) of ``report.json``; ``docs/report.schema.json`` holds it.

    Example:
        >>> json_schema()["required"][:3]
        ['report_version', 'result', 'chosen_trial']
    """
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vq_plugin report, version {REPORT_VERSION}",
        **_record(Report),
        "$defs": {record.__name__: _record(record) for record in _records(Report)},
    }


def _written_fields(record: type) -> Iterator[Field[Any]]:
    return (field for field in fields(record) if field.name != "model")


def _hints(record: type) -> dict[str, Any]:
    hints = get_type_hints(record)
    return {field.name: hints[field.name] for field in _written_fields(record)}


def _records(record: type) -> dict[type, None]:
    """The dataclasses inside of one, each once, in the order of their first use."""
    found: dict[type, None] = {}
    for hint in _hints(record).values():
        parts = [hint]
        for part in parts:
            parts.extend(get_args(part))
        for inner in (part for part in parts if is_dataclass(part) and part is not Scheme):
            assert isinstance(inner, type)
            found.update({inner: None, **_records(inner)})
    return found


def _record(record: type) -> dict[str, Any]:
    text = inspect.getdoc(record) or ""
    meanings = {name: _one_line(body) for name, body in _ATTRIBUTE.findall(text)}
    hints = _hints(record)
    return {
        "type": "object",
        "description": _one_line(text.partition("\n\n")[0]),
        "properties": {
            name: {**_schema(hint), "description": meanings[name]} for name, hint in hints.items()
        },
        "required": list(hints),
    }


def _one_line(text: str) -> str:
    line = _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
    return line.replace("`None`", "null").replace("NaN", "null")


def _schema(hint: Any) -> dict[str, Any]:
    origin, inside = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return {"anyOf": [_schema(part) for part in inside]}
    if origin is Literal:
        return {"enum": list(inside)}
    if origin is tuple and inside[-1] is Ellipsis:
        return {"type": "array", "items": _schema(inside[0])}
    if origin is tuple:
        return {
            "type": "array",
            "prefixItems": [_schema(part) for part in inside],
            "minItems": len(inside),
            "maxItems": len(inside),
        }
    if origin is not None:
        return {"type": "object", "additionalProperties": _schema(inside[1])}
    if hint in _PLAIN:
        return _PLAIN[hint]
    return {"$ref": f"#/$defs/{hint.__name__}"}
