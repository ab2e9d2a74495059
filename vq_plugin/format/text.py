"""The text of a header: written by json, and read from left to right.

A text is what json makes of a header, to the letter. So it is read by patterns of its lines, and
refused at the first letter that is another: strangers' texts are never made into lists and
dictionaries of their choice, which take thirty times the memory.
"""

from __future__ import annotations

import json
import math
import os
import re
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import fields
from functools import reduce
from typing import Any, TypeAlias, TypeVar, cast, get_args

from vq_plugin.coding.entropy import Along, Coding
from vq_plugin.format.header import (
    DTYPES,
    FLOATS,
    FORMAT,
    LEAST_REST_EXPONENT,
    MOST_REST_EXPONENT,
    CheckpointError,
    Entry,
    EntryView,
    Header,
    Stored,
    check_weight,
)

_T = TypeVar("_T")
Buffer: TypeAlias = bytes | memoryview

# Of the text of a scheme or a factor, and of shapes: far beyond what anybody writes. Products of so
# few numbers are small, and so is the time that it takes to read so short a text.
_LONGEST_SCHEME, _MOST_DIMENSIONS = 1000, 64

_STRING = r'"((?:[^"\\\x00-\x1f]|\\.)*+)"'
_NUMBER = r"0|[1-9][0-9]{0,18}"
_EXPONENT = r"0|-?[1-9][0-9]{0,2}"
_SHAPE = rf"\[((?:(?:{_NUMBER})(?:,(?:{_NUMBER})){{0,{_MOST_DIMENSIONS - 1}}})?)\]"
# Another one follows, or none.
_END = r'(?:,(?=")|(\}))'
_VERSION = re.compile(r'\{"format":([0-9]{1,9})[,}]')
_LAYER = re.compile(
    rf'{_STRING}:\{{"scheme":{_STRING},"shape":{_SHAPE},'
    rf'"view":(null|\[{_SHAPE},{_SHAPE},{_SHAPE}\]),"axis":"(in|out|channels)","group":(null|{_NUMBER}),'
    rf'"codes":{_SHAPE},"dtype":"(\w+)","coding":(?:null|\{{"along":"(\w+)","bits":({_NUMBER})\}})\}}{_END}'
)
_ALIAS = re.compile(f"{_STRING}:{_STRING}{_END}")
_TENSOR = re.compile(
    rf'{_STRING}:\["(\w+)",{_SHAPE},({_NUMBER})(?:,"(\w+)"(?:,({_EXPONENT}))?)?\]{_END}'
)
_FACTORS = ',"factors":{'
_CHECKSUM = re.compile(rf"({_NUMBER})\}}")


def header_json(header: Header, following: Iterable[Buffer] = ()) -> str:
    """The text of a header; equal headers give equal texts.

    Its checksum is also that of the bytes which are ``following``.
    """
    names = [field.name for field in fields(Entry)]
    content: dict[str, Any] = {
        "format": FORMAT,
        "layers": {
            name: {
                **{field: getattr(entry, field) for field in names},
                "coding": None if entry.coding is None else vars(entry.coding),
            }
            for name, entry in header.layers.items()
        },
        "aliases": header.aliases,
        **({"factors": header.factors} if header.factors else {}),
        # Names are most of a header: every one once.
        "tensors": {
            name: [
                kind.dtype,
                kind.shape,
                kind.checksum,
                *(each for each in (kind.rounded, kind.exponent) if each is not None),
            ]
            for name, kind in header.tensors.items()
        },
    }
    text = json.dumps({**content, "checksum": 0}, separators=(",", ":"))
    content["checksum"] = reduce(_crc32, following, zlib.crc32(text.encode()))
    return json.dumps(content, separators=(",", ":"))


def parse_header(
    path: str | os.PathLike[str], text: str, most_names: int, following: Iterable[Buffer] = ()
) -> Header:
    """Reads the text of a header; ``CheckpointError`` if it is damaged or of a newer version.

    More than ``most_names`` names of weights, aliases and tensors are damage, and so are other
    bytes ``following`` than those of its checksum.
    """
    version = _VERSION.match(text)
    if version is not None:
        check_version(path, int(version[1]))
    try:
        header = _Text(text, most_names).header(following)
        _check_names(header)
        for name, entry in header.layers.items():
            check_weight(name, entry, header)
    except (ValueError, LookupError) as error:
        raise CheckpointError(f"{path}: the header is damaged ({error})") from error
    return header


def check_version(path: str | os.PathLike[str], version: int) -> None:
    """Raises a ``CheckpointError`` if a format is newer than this package."""
    if version > FORMAT:
        raise CheckpointError(
            f"{path}: format {version} is newer than this vq_plugin reads ({FORMAT}); upgrade it"
        )


def _check_names(header: Header) -> None:
    if not header.aliases:
        return
    names = {*header.layers, *(name for name, _ in header.others() if name in header.tensors)}
    if not names >= {*header.aliases.values()}:
        raise ValueError("an alias names no weight and no tensor")
    if {*header.layers, *header.tensors} & header.aliases.keys():
        raise ValueError("an alias has the name of a weight or a tensor")


class _Text:
    """A text, and how far it was read."""

    def __init__(self, text: str, most_names: int) -> None:
        self._text, self._at, self._names_left = text, 0, most_names
        # Layers are alike: equal shapes are one object.
        self._shapes: dict[str, tuple[int, ...]] = {}

    def header(self, following: Iterable[Buffer]) -> Header:
        if not self._text.isascii():
            raise ValueError("it has letters that are none of ASCII")
        header = Header()
        self._pass(f'{{"format":{FORMAT},"layers":{{')
        for match in self._items(_LAYER):
            _put(header.layers, match[1], self._entry(match))
        self._pass(',"aliases":{')
        for match in self._items(_ALIAS):
            _put(header.aliases, match[1], _string(match[2]))
        if self._text.startswith(_FACTORS, self._at):
            self._pass(_FACTORS)
            for match in self._items(_ALIAS):
                _put(header.factors, match[1], self._printable(match[2]))
            if not header.factors:
                raise self._odd()
        self._pass(',"tensors":{')
        for match in self._items(_TENSOR):
            _put(header.tensors, match[1], self._stored(match))
        self._pass(',"checksum":')
        end = self._at
        checksum = _CHECKSUM.fullmatch(self._text, end)
        if checksum is None:
            raise self._odd()
        found = reduce(_crc32, (b"0}", *following), zlib.crc32(self._text[:end].encode()))
        if int(checksum[1]) != found:
            what = "the checksum of the whole file" if following else "its checksum"
            raise ValueError(f"{what} differs")
        return header

    def _pass(self, text: str) -> None:
        if not self._text.startswith(text, self._at):
            raise self._odd()
        self._at += len(text)

    def _items(self, pattern: re.Pattern[str]) -> Iterator[re.Match[str]]:
        """What matches, separated by commas, up to a bracket, which is passed, too."""
        if self._text.startswith("}", self._at):
            self._at += 1
            return
        last = False
        while not last:
            match = pattern.match(self._text, self._at)
            if match is None:
                raise self._odd()
            self._names_left -= 1
            if self._names_left < 0:
                raise ValueError("it has more names than a text of its length")
            yield match
            self._at = match.end()
            last = match[pattern.groups] is not None

    def _odd(self) -> ValueError:
        near = self._text[self._at : self._at + 40]
        return ValueError(f"it is written otherwise from character {self._at} on: {near!r}")

    def _entry(self, match: re.Match[str]) -> Entry:
        _, scheme, shape, view, *views, axis, group, codes, dtype, along, bits, _ = match.groups()
        scheme = self._printable(scheme)
        if dtype not in FLOATS or group == "0":
            raise ValueError(f"{match[0][:200]!r} cannot be")
        seen = self._shape(shape)
        return Entry(
            scheme=scheme,
            shape=seen,
            view=None if view == "null" else self._view(views, seen),
            axis=axis,
            group=None if group == "null" else _number(group),
            codes=self._shape(codes),
            dtype=dtype,
            coding=None if along is None else Coding(_along(along), _number(bits)),
        )

    def _printable(self, raw: str) -> str:
        """The text of a scheme or of a factor."""
        text = _string(raw) if len(raw) <= _LONGEST_SCHEME else ""
        if not text or not text.isprintable():
            raise ValueError(f"{raw[:200]!r} cannot be")
        return text

    def _view(self, texts: list[str], shape: tuple[int, ...]) -> EntryView:
        parameter, split, order = map(self._shape, texts)
        sizes = {math.prod(each) for each in (parameter, split, shape)}
        if len(sizes) > 1 or sorted(order) != list(range(len(split))) or len(shape) < 2:
            raise ValueError(f"{texts} is no view of a weight of shape {shape}")
        return parameter, split, order

    def _stored(self, match: re.Match[str]) -> Stored:
        _, dtype, shape, checksum, rounded, power, _ = match.groups()
        if dtype not in DTYPES:
            raise ValueError(f"there is no dtype {dtype!r}")
        exponent = None if power is None else int(power)
        to = "float16" if exponent is None else "int8"
        if rounded is not None and (dtype != to or rounded not in ("float32", "float64")):
            raise ValueError(f"a tensor cannot be rounded from {rounded!r} to {dtype}")
        if exponent is not None and not LEAST_REST_EXPONENT <= exponent <= MOST_REST_EXPONENT:
            raise ValueError(f"a step of 2^{exponent} is out of range")
        return Stored(dtype, self._shape(shape), _number(checksum), rounded, exponent)

    def _shape(self, text: str) -> tuple[int, ...]:
        shape = self._shapes.get(text)
        if shape is None:
            shape = tuple(map(_number, text.split(","))) if text else ()
            # Libraries multiply the other numbers of an empty tensor, too.
            if 0 in shape and math.prod(filter(None, shape)) >= 1 << 60:
                raise ValueError(f"a tensor of shape {shape} is beyond all memory")
            self._shapes[text] = shape
        return shape


def _crc32(before: int, data: Buffer) -> int:
    return zlib.crc32(data, before)


def _along(text: str) -> Along:
    for along in get_args(Along):
        if along == text:
            return cast(Along, along)
    raise ValueError(f"there is no coding along {text!r}")


def _put(into: dict[str, _T], name: str, value: _T) -> None:
    name = _string(name)
    if name in into:
        raise ValueError(f"{name!r} is there twice")
    into[name] = value


def _string(raw: str) -> str:
    if "\\" not in raw:
        return raw
    text: str = json.loads(f'"{raw}"')
    if json.dumps(text) != f'"{raw}"':
        raise ValueError(f"{raw[:40]!r} is written otherwise")
    return text


def _number(text: str) -> int:
    number = int(text)
    if number >= 1 << 63:
        raise ValueError(f"{text} is no whole number of 63 bits")
    return number
