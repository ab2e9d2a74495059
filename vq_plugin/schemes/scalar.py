"""Schemes of single weights: ``KM`` and ``Binary``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from vq_plugin.schemes.geometry import CodebookDtype, Geometry
from vq_plugin.schemes.registry import register_scheme
from vq_plugin.schemes.scheme import (
    FLOATS,
    Scheme,
    require_centers,
    require_choice,
    require_positive,
)


@register_scheme(fit="vq_plugin.fit.schemes:fit_km")
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
        require_centers(self)
        if self.group is not None:
            require_positive(self, "group")
        require_choice(self, "keep_zeros", (False, True))

    def geometry(self, shape: tuple[int, ...]) -> Geometry:  # noqa: D102 - inherited
        return self.cut(shape, group=self.group)

    def pinned(self, centers: Tensor) -> Tensor | None:
        """Zeros, with ``keep_zeros``."""
        return centers == 0 if self.keep_zeros else None


@register_scheme(fit="vq_plugin.fit.schemes:fit_binary")
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
    codebook_dtypes: ClassVar[tuple[CodebookDtype, ...]] = FLOATS
    # Its centers have a closed form.
    calibrates: ClassVar[bool] = False

    @property
    def k(self) -> int:
        """Always 2."""
        return 2

    def geometry(self, shape: tuple[int, ...]) -> Geometry:
        """One codebook of two centers, even for a single weight."""
        return self.cut(shape).with_centers(2)

    def row_size(self, rows: Tensor) -> Tensor:
        """The mean absolute weight."""
        return rows.abs().mean(1)
