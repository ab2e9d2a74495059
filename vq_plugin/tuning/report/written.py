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

from vq_plugin.factors import Factored
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
    Factored: {"type": "string"},
    NoneType: {"type": "null"},
}


def as_json(value: Any) -> Any:
    """What ``json.dumps`` takes for a value of a report.

    Example:
        >>> from vq_plugin.tuning.result import FrontierPoint
        >>> as_json(FrontierPoint(nbytes=100, harm=float("inf")))
        {'nbytes': 100, 'harm': None}
    """
    if isinstance(value, Scheme | Factored):
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
    records: dict[str, Any] = {}
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "title": f"vq_plugin report, version {REPORT_VERSION}",
        **_record(Report, records),
        "$defs": records,
    }


def _written_fields(record: type) -> Iterator[Field[Any]]:
    return (field for field in fields(record) if field.name != "model")


def _record(record: type, records: dict[str, Any]) -> dict[str, Any]:
    """The schema of a dataclass; those inside of it are added to ``records``."""
    text, hints = inspect.getdoc(record) or "", get_type_hints(record)
    meanings = {name: _one_line(body) for name, body in _ATTRIBUTE.findall(text)}
    names = [field.name for field in _written_fields(record)]
    return {
        "type": "object",
        "description": _one_line(text.partition("\n\n")[0]),
        "properties": {
            name: {**_schema(hints[name], records), "description": meanings[name]} for name in names
        },
        "required": names,
    }


def _one_line(text: str) -> str:
    line = _ROLE.sub(r"`\1`", " ".join(text.split())).replace("``", "`")
    return line.replace("`None`", "null").replace("NaN", "null")


def _schema(hint: Any, records: dict[str, Any]) -> dict[str, Any]:
    origin, inside = get_origin(hint), get_args(hint)
    if hint in _PLAIN:
        return _PLAIN[hint]
    if origin in (Union, UnionType):
        parts = [_schema(part, records) for part in inside]
        # Two that are written alike are one.
        return {"anyOf": [part for at, part in enumerate(parts) if part not in parts[:at]]}
    if origin is Literal:
        return {"enum": list(inside)}
    if origin is tuple and inside[-1] is Ellipsis:
        return {"type": "array", "items": _schema(inside[0], records)}
    if origin is tuple:
        parts = [_schema(part, records) for part in inside]
        return {
            "type": "array",
            "prefixItems": parts,
            "minItems": len(parts),
            "maxItems": len(parts),
        }
    if origin is not None:
        return {"type": "object", "additionalProperties": _schema(inside[1], records)}
    if hint.__name__ not in records:
        records[hint.__name__] = None  # its place, before those inside of it
        records[hint.__name__] = _record(hint, records)
    return {"$ref": f"#/$defs/{hint.__name__}"}
