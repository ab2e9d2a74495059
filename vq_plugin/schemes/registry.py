"""Schemes by name, and the fits that they are registered with."""

from __future__ import annotations

import dataclasses
import difflib
import importlib
import re
from collections.abc import Callable
from typing import Any, Protocol, TypeVar

from torch import Tensor

from vq_plugin.arguments import brief
from vq_plugin.schemes.scheme import Scheme

S = TypeVar("S", bound=Scheme)

SCHEMES: dict[str, type[Scheme]] = {}
_FITS: dict[type[Scheme], Fit | str] = {}

_NAME = re.compile(r"[a-z]\w*")
_CALL = re.compile(r"(\w+)\s*(?:\((.*)\))?", re.DOTALL)


class Fit(Protocol):
    """Finds codes and codebooks for the 2-D view of one weight.

    The view is float32, ``(rows, length)``, on the CPU, already divided by its row scales. Codes
    are integers, ``(stages, rows, subspaces)``, and codebooks floats,
    ``(stages, groups, books, k, dim)``, as ``scheme.geometry`` says, with any ``k`` up to its own;
    centers are rounded to the scheme's ``codebook_dtype`` afterwards. ``importance`` is what each
    element's squared error counts, of the shape of the view, or ``None``. The same arguments must
    give the same result.
    """

    def __call__(
        self, matrix: Tensor, scheme: Any, importance: Tensor | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        """Codes and codebooks."""
        ...


def register_scheme(*, fit: Fit | str | None = None) -> Callable[[type[S]], type[S]]:
    """A decorator that makes a scheme known everywhere: in texts, recipes, hosts and files.

    Args:
        fit: Finds codes and codebooks, see :class:`Fit`; or its place as ``"module:function"``,
            imported when it is first called. ``None`` takes that of the class it derives from.

    Returns:
        What registers a frozen dataclass derived from :class:`vq_plugin.Scheme`, whose ``method``
        is its name.

    Raises:
        TypeError: If the class is no frozen dataclass derived from ``Scheme``, or has no fit.
        ValueError: If its name is no name, or that of another scheme.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> def fit_signs(matrix, scheme, importance, seed):
        ...     size = matrix.abs().mean()
        ...     codes = (matrix >= 0).to(torch.uint8)
        ...     return codes.unsqueeze(0), torch.stack([-size, size]).reshape(1, 1, 1, 2, 1)
        >>> @vq.register_scheme(fit=fit_signs)
        ... @dataclasses.dataclass(frozen=True, repr=False)
        ... class Doubled(vq.Scheme):
        ...     method = "doubled"
        ...     k: int = 2
        >>> small = vq.quantize_weight(torch.randn(8, 8), vq.parse_scheme("doubled"))
        >>> small.codes.shape
        torch.Size([1, 8, 8])
    """

    def register(cls: type[S]) -> type[S]:
        if not (isinstance(cls, type) and issubclass(cls, Scheme)):
            raise TypeError(f"{cls!r} does not derive from vq_plugin.Scheme")
        if "__dataclass_params__" not in vars(cls) or not cls.__dataclass_params__.frozen:  # type: ignore[attr-defined]
            raise TypeError(f"{cls.__name__} must be a dataclass(frozen=True, repr=False)")
        name = getattr(cls, "method", None)
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{cls.__name__}.method must be a lower-case name, got {name!r}")
        known = SCHEMES.get(name)
        # A module that is run again defines its classes again.
        if known is not None and _place(known) != _place(cls):
            raise ValueError(f"scheme {name!r} is {_place(known)} already; choose another name")
        if fit is not None:
            _FITS[cls] = fit
        elif not any(base in _FITS for base in cls.__mro__):
            raise TypeError(f"{cls.__name__} derives from no scheme with a fit: give fit=")
        SCHEMES[name] = cls
        return cls

    return register


def fit_of(scheme: Scheme) -> Fit:
    """The fit of a scheme, or of its nearest base that has one; ``TypeError`` if there is none."""
    for cls in type(scheme).__mro__:
        fit = _FITS.get(cls)
        if isinstance(fit, str):
            module, _, name = fit.partition(":")
            found: Fit = getattr(importlib.import_module(module), name)
            return found
        if fit is not None:
            return fit
    raise TypeError(
        f"{type(scheme).__name__} is registered with no fit: @vq.register_scheme(fit=…)"
    )


def parse_scheme(text: str) -> Scheme:
    """Reads a scheme from text such as ``"pq(k=16,dim=4)"``.

    Args:
        text: ``method(setting=value, ...)``; settings left out keep their defaults, and the
            parentheses may be left out with them. ``str(scheme)`` gives such a text back.

    Returns:
        The scheme.

    Raises:
        TypeError: If it is no text.
        ValueError: If the method or a setting is unknown, given twice or out of range.

    Example:
        >>> import vq_plugin as vq
        >>> parse_scheme("pq(k=16, dim=4, axis=out)")
        PQ(k=16, dim=4, axis='out')
        >>> parse_scheme(str(vq.RQ(k=64, stages=3))) == vq.RQ(k=64, stages=3)
        True
    """
    if not isinstance(text, str):
        raise TypeError(f"a scheme's text is such as 'pq(k=16,dim=4)', got {brief(text)}")
    return scheme_from_dict(read_call(text, "scheme"))


def read_call(text: str, noun: str) -> dict[str, Any]:
    """``"method"`` and settings from text such as ``"pq(k=16,dim=4)"``; ``noun`` is for errors."""
    match = _CALL.fullmatch(text.strip())
    if match is None:
        cut = text.count("(") != text.count(")")
        hint = " in quotes: a comma ends a value inside YAML's [] and {}" if cut else ""
        raise ValueError(f"cannot read the {noun} {text!r}; write it as 'pq(k=16,dim=4)'{hint}")
    values: dict[str, Any] = {"method": match[1].lower()}
    for setting in filter(str.strip, (match[2] or "").split(",")):
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"{noun} {text!r}: {setting.strip()!r} needs the form 'setting=value'")
        if name in values:
            raise ValueError(f"{noun} {text!r}: {name!r} is given twice")
        values[name] = _parse_value(value)
    return values


def scheme_from_dict(values: dict[str, Any]) -> Scheme:
    """Builds a scheme from the plain values of :meth:`Scheme.to_dict`.

    Args:
        values: ``"method"`` and any of that method's settings.

    Returns:
        The scheme.

    Raises:
        ValueError: If the method or a setting is unknown or out of range.

    Example:
        >>> scheme_from_dict({"method": "km", "k": 4})
        KM(k=4)
    """
    settings = dict(values)
    method = settings.pop("method", None)
    if method not in SCHEMES:
        raise ValueError(unknown("scheme", method, list(SCHEMES)))
    cls = SCHEMES[method]
    fields = [field.name for field in dataclasses.fields(cls)]
    for name in settings:
        if name not in fields:
            raise ValueError(unknown(f"{method}: setting", name, fields))
    return cls(**settings)


def _parse_value(text: str) -> object:
    text = text.strip().strip("\"'")
    words: dict[str, object] = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    if re.fullmatch(r"[+-]?\d+", text):
        return int(text)
    # A setting of a user's scheme may be a fraction; texts such as nan are texts.
    return float(text) if re.fullmatch(r"[+-]?(\d+\.\d*|\.?\d+)(e[+-]?\d+)?", text) else text


def unknown(kind: str, name: object, known: list[str]) -> str:
    """What an error says of an unknown name: the nearest, and all that are known."""
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{kind} {name!r} is unknown; {hint}known: {', '.join(known)}"


def _place(cls: type) -> str:
    return f"{cls.__module__}.{cls.__qualname__}"
