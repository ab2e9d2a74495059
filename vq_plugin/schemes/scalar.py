"""Schemes of single weights: ``KM``, ``Uniform`` and ``Binary``."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from vq_plugin.arguments import is_number
from vq_plugin.schemes.geometry import CodebookDtype, Geometry
from vq_plugin.schemes.registry import register_scheme
from vq_plugin.schemes.scheme import (
    FLOATS,
    Scheme,
    own_number,
    require_centers,
    require_choice,
    require_positive,
)

# How much shorter a row scale may become when it is rounded.
_ROUNDED = 2 ** (1 / 16) * (1 + 2**-10)
# A row that the outputs hardly feel, on the data at hand, counts like this part of the mean.
LEAST_FELT = 0.3


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


@register_scheme(fit="vq_plugin.fit.schemes:fit_uniform")
@dataclass(frozen=True, repr=False)
class Uniform(Scheme):
    """Centers at equal distances: for files, whose codes take as many bits as they tell.

    An entropy coder makes codes near 0 cheap, and then equal steps lose least: no quantizer of
    single weights does better at many bits (Gish & Pierce 1968, "Asymptotically efficient
    quantizing"). Its centers are many, its bits few. With ``scale="row"``, rows have steps of their
    own: long where the outputs of the model feel little of their errors, which calibration of
    :func:`vq_plugin.compress` and of the tuner finds out, else as long as the rows are. They are
    whole powers of the eighth root of two, which take half a byte each in files.

    Attributes:
        step: Distance of two centers, over the root mean square of the weights; with row scales,
            over that of a typical row.
        k: Most centers of the codebook, those between the smallest and the largest weight. Where
            they would not reach, steps are longer.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> weight = torch.tensor([[-1.0, 1.0], [0.25, -1.25]])
        >>> small = vq.quantize_weight(weight, Uniform(step=1.0))
        >>> small.codebooks.flatten().tolist(), small.codes.tolist()
        ([-1.125, 0.25, 1.0], [[[0, 2], [1, 0]]])
    """

    method: ClassVar[str] = "uniform"
    trains: ClassVar[bool] = False
    rounds_scales: ClassVar[bool] = True

    step: float = 0.5
    k: int = 256

    def __post_init__(self) -> None:
        super().__post_init__()
        require_centers(self)
        own_number(self, "step")
        if not (is_number(self.step) and 0 < self.step < math.inf):
            raise ValueError(f"uniform: step must be a finite number above 0, got {self.step!r}")

    @property
    def feels(self) -> bool:
        """With row scales."""
        return self.scale == "row"

    @property
    def reach(self) -> int:
        """Steps from the middle to the last center, at least 1."""
        return max(1, (self.k - 1) // 2)

    def row_size_for(self, rows: Tensor, outputs: Tensor | None) -> Tensor:
        """Steps of equal harm where it is known how much ``outputs`` count, else by size.

        No step is so short that the largest weight of a row is beyond the last center.
        """
        size = self.row_size(rows)
        live = size > 0
        if outputs is not None and bool(live.any()):
            felt = outputs.double() * size.double().square()
            whole = felt[live].mean()
            if bool(whole > 0):
                # What is left is, in the mean, as large as 1.
                size = size * (whole / felt.maximum(whole * LEAST_FELT)).sqrt().float()
        last = rows.abs().amax(1) / (self.step * self.reach) * _ROUNDED
        return torch.maximum(size, last)


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
    trains: ClassVar[bool] = False

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
