"""What every scheme has in common."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import dataclass
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import torch
from torch import Tensor

from vq_plugin.arguments import as_number, brief
from vq_plugin.schemes.geometry import CodebookDtype, CutAxis, Geometry, center_dtype

FLOATS: tuple[CodebookDtype, ...] = ("float16", "bfloat16", "float32")
_MAX_K = 1 << 16


@dataclass(frozen=True, kw_only=True, repr=False)
class Scheme:
    """A frozen value that says what to do to one weight; use one of its subclasses.

    It says nothing about how centers are found (that is the fit it is registered with, see
    :func:`vq_plugin.register_scheme`) nor how the result is stored
    (:class:`vq_plugin.CodebookWeight`).

    Attributes:
        codebook_dtype: How centers (and row scales) are stored: ``"float16"``, ``"bfloat16"``,
            ``"float32"``, or, but for ``Binary``, ``"int8"``: integers of one byte times a power of
            two for each codebook, and row scales in float16. Centers are rounded to it during the
            fit, so what is evaluated is what the file holds.
        scale: ``"row"`` divides every row of the 2-D view by its own scale before the fit and
            stores the scales; ``None`` stores none. Rows run along the other side than ``axis``.
    """

    method: ClassVar[str]
    codebook_dtypes: ClassVar[tuple[CodebookDtype, ...]] = (*FLOATS, "int8")
    #: Whether codes and centers may be moved to lower the error of the layer's output.
    calibrates: ClassVar[bool] = True
    #: Whether centers are trained on many weights, so that fits take long and samples say little.
    trains: ClassVar[bool] = True
    #: Whether row scales may be off by a few percent, for which codes and centers then make up.
    rounds_scales: ClassVar[bool] = False

    @property
    def feels(self) -> bool:
        """Whether a calibrated fit goes by what the outputs of the model feel of each row."""
        return False

    if TYPE_CHECKING:

        @property
        def k(self) -> int:
            """Centers per codebook; a field of the subclasses that let it be chosen."""

    codebook_dtype: CodebookDtype = "float16"
    scale: Literal["row"] | None = None

    def __post_init__(self) -> None:
        require_choice(self, "codebook_dtype", self.codebook_dtypes)
        require_choice(self, "scale", (None, "row"))

    def geometry(self, shape: tuple[int, ...]) -> Geometry:
        """Everything that follows for a weight: rows, sub-vectors, codebooks, bytes.

        Single weights into one codebook, unless a subclass says otherwise by :meth:`cut`.

        Args:
            shape: Shape of the weight, ``(out, in, ...)``.
        """
        return self.cut(shape)

    def cut(
        self,
        shape: tuple[int, ...],
        *,
        axis: CutAxis = "in",
        dim: int | None = 1,
        stages: int = 1,
        group: int | None = None,
        shared: bool = True,
    ) -> Geometry:
        """The geometry of a cut along ``axis``; for the :meth:`geometry` of subclasses.

        Args:
            shape: Shape of the weight.
            axis: What sub-vectors run along. ``"channels"`` is ``"in"`` where a weight has one
                kernel position, or fewer channels than ``dim``.
            dim: Length of a sub-vector; ``None`` takes the whole row, or all channels.
            stages: Codebooks whose centers are summed.
            group: Rows per codebook group; ``None`` where all rows share their codebooks.
            shared: Whether all subspaces share one codebook.

        Returns:
            With :attr:`k` centers, or with as many as a codebook has sub-vectors where that is
            fewer.
        """
        shape = tuple(shape)
        if axis == "channels" and (math.prod(shape[2:]) == 1 or shape[1] < (dim or 1)):
            axis = "in"
        sides = {"in": math.prod(shape[1:]), "out": shape[0], "channels": shape[1]}
        length = sides[axis]
        return _geometry(
            shape=shape,
            axis=axis,
            dim=min(dim or length, length),
            stages=stages,
            group=group,
            shared=shared,
            k=self.k,
            codebook_dtype=self.codebook_dtype,
            scaled=self.scale == "row",
        )

    def row_size(self, rows: Tensor) -> Tensor:
        """What ``scale="row"`` divides rows by: their root mean square.

        Args:
            rows: Float32, ``(rows, length)``.

        Returns:
            Float32, ``(rows,)``.
        """
        return rows.square().mean(1).sqrt()

    def row_size_for(self, rows: Tensor, outputs: Tensor | None) -> Tensor:
        """:meth:`row_size`, unless a scheme goes by what outputs feel.

        Args:
            rows: Float32, ``(rows, length)``.
            outputs: What a squared error of each row does to the outputs of the model, float64
                ``(rows,)``; ``None`` where that is not known.

        Returns:
            Float32, ``(rows,)``.
        """
        del outputs
        return self.row_size(rows)

    def pinned(self, centers: Tensor) -> Tensor | None:
        """Which centers never move, a mask of the shape of ``centers``; ``None`` for none."""
        del centers
        return None

    @property
    def torch_codebook_dtype(self) -> torch.dtype:
        """What holds ``CodebookWeight.codebooks`` and row scales; float16 for int8 centers."""
        return center_dtype(self.codebook_dtype)

    def to_dict(self) -> dict[str, Any]:
        """The scheme as plain values: ``{"method": "pq", "k": 16, ...}``, every field present.

        Example:
            >>> import vq_plugin as vq
            >>> vq.KM(k=4).to_dict()["k"]
            4
        """
        return {"method": self.method, **dataclasses.asdict(self)}

    def __str__(self) -> str:
        settings = (f"{name}={_as_text(value)}" for name, value in self._shown())
        return f"{self.method}({','.join(settings)})"

    def __repr__(self) -> str:
        settings = (f"{name}={value!r}" for name, value in self._shown())
        return f"{type(self).__name__}({', '.join(settings)})"

    def _shown(self) -> list[tuple[str, object]]:
        """The settings that tell schemes apart at a glance, then all that are not the default."""
        always = ("step", "k", "levels", "block", "stages", "dim")
        defaults = {field.name: field.default for field in dataclasses.fields(self)}
        names = [name for name in always if name in defaults]
        names += [
            name
            for name, default in defaults.items()
            if name not in always and getattr(self, name) != default
        ]
        return [(name, getattr(self, name)) for name in names]


# Every layer asks several times, and models have thousands of the same shape.
@lru_cache(maxsize=1024)
def _geometry(**settings: Any) -> Geometry:
    cut = Geometry(**settings)
    return cut.with_centers(min(cut.k, cut.sub_vectors))


def own_number(scheme: object, field: str) -> object:
    """A setting of a frozen dataclass, which is a number of Python's from now on, if it is one."""
    value = as_number(getattr(scheme, field))
    object.__setattr__(scheme, field, value)
    return value


def require_positive(scheme: Scheme, field: str) -> None:
    """Raises ``ValueError`` unless a field is a whole number of at least 1."""
    value = own_number(scheme, field)
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(
            f"{scheme.method}: {field} must be a whole number of at least 1, got {brief(value)}"
        )


def require_centers(scheme: Scheme) -> None:
    """Raises ``ValueError`` unless ``k`` is from 1 to 65,536."""
    require_positive(scheme, "k")
    if scheme.k > _MAX_K:
        raise ValueError(f"{scheme.method}: k must be at most {_MAX_K}, got {scheme.k}")


def require_choice(scheme: Scheme, field: str, choices: tuple[object, ...]) -> None:
    """Raises ``ValueError`` unless a field has one of the values."""
    value = getattr(scheme, field)
    if value not in choices:
        expected = ", ".join(map(repr, choices))
        raise ValueError(f"{scheme.method}: {field} must be one of {expected}, got {brief(value)}")
    # 1 is True, and is written otherwise.
    object.__setattr__(scheme, field, choices[choices.index(value)])


def _as_text(value: object) -> str:
    return str(value).lower() if value is None or isinstance(value, bool) else str(value)
