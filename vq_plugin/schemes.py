"""What to do to one weight: the schemes ``KM``, ``PQ``, ``RQ`` and ``Binary``.

A scheme is a frozen value. It says nothing about how centers are found (``vq_plugin.fit``) nor
how the result is stored (``vq_plugin.codebook``). The names follow Gong et al. 2014
(arXiv 1412.6115): k-means on single weights, product, residual quantization and binarization.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch

Axis = Literal["in", "out"]
CodebookSharing = Literal["subspace", "tensor"]
CodebookDtype = Literal["float16", "bfloat16", "float32", "int8"]

_FLOATS: tuple[CodebookDtype, ...] = ("float16", "bfloat16", "float32")
_MAX_K = 1 << 16


def _require_positive(method: str, field: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{method}: {field} must be a whole number of at least 1, got {value!r}")


def _require_choice(method: str, field: str, value: object, choices: tuple[object, ...]) -> None:
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{method}: {field} must be one of {expected}, got {value!r}")


@dataclass(frozen=True, kw_only=True, repr=False)
class Scheme:
    """What every scheme has in common; use one of its subclasses.

    Attributes:
        codebook_dtype: How centers (and row scales) are stored: ``"float16"``, ``"bfloat16"``,
            ``"float32"``, or, but for ``Binary``, ``"int8"``: integers of one byte times a power of
            two for each codebook, and row scales in float16. Centers are rounded to it during the
            fit, so what is evaluated is what the file holds.
        scale: ``"row"`` divides every row of the 2-D view by its own scale before the fit and
            stores the scales; ``None`` stores none. Rows run along the other side than ``axis``.
    """

    method: ClassVar[str]
    codebook_dtypes: ClassVar[tuple[CodebookDtype, ...]] = (*_FLOATS, "int8")

    if TYPE_CHECKING:

        @property
        def k(self) -> int:
            """Centers per codebook; a field of the subclasses that let it be chosen."""

    codebook_dtype: CodebookDtype = "float16"
    scale: Literal["row"] | None = None

    def __post_init__(self) -> None:
        _require_choice(self.method, "codebook_dtype", self.codebook_dtype, self.codebook_dtypes)
        _require_choice(self.method, "scale", self.scale, (None, "row"))

    @property
    def view_axis(self) -> Axis:
        """The side of the 2-D view along which sub-vectors run."""
        return "in"

    @property
    def torch_codebook_dtype(self) -> torch.dtype:
        """What holds ``CodebookWeight.codebooks`` and row scales; float16 for int8 centers."""
        name = "float16" if self.codebook_dtype == "int8" else self.codebook_dtype
        dtype: torch.dtype = getattr(torch, name)
        return dtype

    def to_dict(self) -> dict[str, Any]:
        """The scheme as plain values: ``{"method": "pq", "k": 16, ...}``, every field present.

        Example:
            >>> KM(k=4).to_dict()["k"]
            4
        """
        return {"method": self.method, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        settings = (f"{name}={_format_value(value)}" for name, value in self._shown())
        return f"{self.method}({','.join(settings)})"

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in self._shown())
        return f"{type(self).__name__}({', '.join(settings)})"

    def _shown(self) -> list[tuple[str, object]]:
        """The settings that tell schemes apart at a glance, then all that are not the default."""
        always = ("k", "stages", "dim")
        fields = {field.name: field.default for field in dataclasses.fields(self)}
        first = [name for name in always if name in fields]
        rest = [
            n for n, default in fields.items() if n not in always and getattr(self, n) != default
        ]
        return [(name, getattr(self, name)) for name in (*first, *rest)]


@dataclass(frozen=True, repr=False)
class KM(Scheme):
    """K-means on single weights (Gong et al. 2014, section 3.2.2; Han et al. 2015).

    Attributes:
        k: Centers per codebook. Reduced to the number of distinct weights where that is lower.
        group: Rows per codebook; ``None`` shares one codebook among all rows.
        keep_zeros: Pin one center at exactly 0 where the weight has exact zeros, so that pruned
            weights stay pruned.

    Example:
        >>> str(KM(k=16))
        'km(k=16)'
    """

    method: ClassVar[str] = "km"

    k: int = 16
    group: int | None = None
    keep_zeros: bool = False

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_k(self.method, self.k)
        if self.group is not None:
            _require_positive(self.method, "group", self.group)
        _require_choice(self.method, "keep_zeros", self.keep_zeros, (False, True))


@dataclass(frozen=True, repr=False)
class PQ(Scheme):
    """Product quantization (Gong et al. 2014, section 3.2.3, eq. 5).

    Every row of the 2-D view is cut into sub-vectors of ``dim`` weights; each subspace, or the
    whole tensor, has its own codebook of ``k`` centers.

    Attributes:
        k: Centers per codebook. Reduced to the number of distinct sub-vectors where lower.
        dim: Length of a sub-vector. A length that ``dim`` does not divide is padded inside.
        axis: ``"in"`` cuts along the inputs, ``"out"`` along the outputs of the layer.
        codebooks: ``"subspace"`` for a codebook per subspace (the paper's PQ), ``"tensor"`` for
            one codebook that all subspaces share.

    Example:
        >>> str(PQ(k=16, dim=4, axis="out"))
        'pq(k=16,dim=4,axis=out)'
    """

    method: ClassVar[str] = "pq"

    k: int = 16
    dim: int = 4
    axis: Axis = "in"
    codebooks: CodebookSharing = "subspace"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_k(self.method, self.k)
        _require_positive(self.method, "dim", self.dim)
        _require_choice(self.method, "axis", self.axis, ("in", "out"))
        _require_choice(self.method, "codebooks", self.codebooks, ("subspace", "tensor"))

    @property
    def view_axis(self) -> Axis:  # noqa: D102 - inherited
        return self.axis


@dataclass(frozen=True, repr=False)
class RQ(Scheme):
    """Residual quantization (Gong et al. 2014, section 3.2.4, eq. 7; Chen et al. 2010).

    A sub-vector is the sum of one center from each of ``stages`` codebooks.

    Attributes:
        k: Centers per codebook. Reduced to the number of distinct sub-vectors where lower.
        stages: Codebooks in the sum.
        dim: Length of a sub-vector; ``None`` takes the whole row, as in the paper.
        axis: ``"in"`` cuts along the inputs, ``"out"`` along the outputs of the layer.
        codebooks: ``"subspace"`` or ``"tensor"``, as in :class:`PQ`. The two are the same
            where ``dim`` is ``None``.

    Example:
        >>> str(RQ(k=256, stages=2))
        'rq(k=256,stages=2,dim=none)'
    """

    method: ClassVar[str] = "rq"

    k: int = 256
    stages: int = 2
    dim: int | None = None
    axis: Axis = "in"
    codebooks: CodebookSharing = "subspace"

    def __post_init__(self) -> None:
        super().__post_init__()
        _require_k(self.method, self.k)
        _require_positive(self.method, "stages", self.stages)
        if self.dim is not None:
            _require_positive(self.method, "dim", self.dim)
        _require_choice(self.method, "axis", self.axis, ("in", "out"))
        _require_choice(self.method, "codebooks", self.codebooks, ("subspace", "tensor"))

    @property
    def view_axis(self) -> Axis:  # noqa: D102 - inherited
        return self.axis


@dataclass(frozen=True, repr=False)
class Binary(Scheme):
    """Two centers, plus and minus the mean absolute weight (Gong et al. 2014, section 3.2.1).

    With ``scale="row"`` every row has its own mean, as in XNOR-Net.

    Example:
        >>> str(Binary(scale="row"))
        'binary(scale=row)'
    """

    method: ClassVar[str] = "binary"
    # Two centers have no bytes to spare.
    codebook_dtypes: ClassVar[tuple[CodebookDtype, ...]] = _FLOATS

    @property
    def k(self) -> int:
        """Always 2."""
        return 2


def _require_k(method: str, k: object) -> None:
    _require_positive(method, "k", k)
    if isinstance(k, int) and k > _MAX_K:
        raise ValueError(f"{method}: k must be at most {_MAX_K}, got {k}")


SCHEMES: dict[str, type[Scheme]] = {cls.method: cls for cls in (KM, PQ, RQ, Binary)}

_CALL = re.compile(r"\s*(\w+)\s*(?:\((.*)\))?\s*", re.DOTALL)


def _format_value(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)


def _parse_value(text: str) -> object:
    text = text.strip().strip("\"'")
    words: dict[str, object] = {"none": None, "null": None, "true": True, "false": False}
    if text.lower() in words:
        return words[text.lower()]
    return int(text) if re.fullmatch(r"[+-]?\d+", text) else text


def parse_scheme(text: str) -> Scheme:
    """Reads a scheme from text such as ``"pq(k=16,dim=4)"``.

    Args:
        text: ``method(setting=value, ...)``; settings left out keep their defaults, and the
            parentheses may be left out with them. ``str(scheme)`` gives such a text back.

    Returns:
        The scheme.

    Raises:
        ValueError: If the method or a setting is unknown, given twice or out of range.

    Example:
        >>> parse_scheme("pq(k=16, dim=4, axis=out)")
        PQ(k=16, dim=4, axis='out')
        >>> parse_scheme(str(RQ(k=64, stages=3))) == RQ(k=64, stages=3)
        True
    """
    match = _CALL.fullmatch(text)
    if match is None:
        cut = text.count("(") != text.count(")")
        hint = " in quotes: a comma ends a value inside YAML's [] and {}" if cut else ""
        raise ValueError(f"cannot read the scheme {text!r}; write it as 'pq(k=16,dim=4)'{hint}")
    values: dict[str, object] = {"method": match[1].lower()}
    for setting in filter(str.strip, (match[2] or "").split(",")):
        name, equals, value = (part.strip() for part in setting.partition("="))
        if not equals:
            raise ValueError(f"scheme {text!r}: {setting.strip()!r} needs the form 'setting=value'")
        if name in values:
            raise ValueError(f"scheme {text!r}: {name!r} is given twice")
        values[name] = _parse_value(value)
    return scheme_from_dict(values)


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
        raise ValueError(_unknown("scheme", method, list(SCHEMES)))
    cls = SCHEMES[method]
    known = [field.name for field in dataclasses.fields(cls)]
    for name in settings:
        if name not in known:
            raise ValueError(_unknown(f"{method}: setting", name, known))
    return cls(**settings)


def _unknown(kind: str, name: object, known: list[str]) -> str:
    near = difflib.get_close_matches(str(name).lower(), known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}? " if near else ""
    return f"{kind} {name!r} is unknown; {hint}known: {', '.join(known)}"
