"""What to do to one layer before it is coded: ``SVD`` and ``Basis``."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from typing import ClassVar, Literal, TypeAlias

from torch import nn

from vq_plugin.arguments import is_number
from vq_plugin.factors.splits import ChannelSplit, KernelSplit, SpatialSplit, Split
from vq_plugin.schemes.registry import read_call, unknown
from vq_plugin.schemes.scheme import own_number

# What is left of a sum of squares beyond this part of it is rounding.
_NOTHING = 1e-12


@dataclass(frozen=True)
class _Factor:
    """What both kinds have in common: a text, and a rank."""

    method: ClassVar[str]

    def __str__(self) -> str:
        """As :func:`parse_factor` reads it; settings that have their default are left out."""
        given = [
            (each.name, getattr(self, each.name))
            for each in fields(self)
            if getattr(self, each.name) != each.default
        ]
        settings = (f"{n}={str(v).lower() if isinstance(v, bool) else v}" for n, v in given)
        return f"{self.method}({','.join(settings)})"


@dataclass(frozen=True)
class SVD(_Factor):
    """A layer as two of a low rank, by the truncated singular value decomposition.

    Linear becomes two, ``in`` to ``rank`` and ``rank`` to ``out`` (Gong et al. 2014, section 3.1).
    A convolution becomes, group by group, ``rank`` filters and a convolution of one position that
    mixes them, or, split in space, a k×1 and a 1×k convolution. Exactly one of ``rank``,
    ``energy`` and ``rate`` is given.

    Attributes:
        rank: Channels between the two layers, in each group of a convolution.
        energy: The lowest rank that keeps so much of the sum of squares, above 0 and at most 1: of
            the weight, or, where calibration knows the inputs, of the layer's outputs. Another
            value is refused with the name of the layer that it is asked of.
        rate: The highest rank with which the layers have so many times fewer weights, above 1.
        split: Of a convolution. ``"channel"``: few filters of the whole kernel, then mixes of
            them (Zhang et al. 2015, arXiv 1505.06798). ``"spatial"``: the first dimension of
            the kernel, then the others (Jaderberg et al. 2014, arXiv 1405.3866).

    Example:
        >>> str(SVD(rank=8)), parse_factor("svd(energy=0.9,split=spatial)")
        ('svd(rank=8)', SVD(rank=None, energy=0.9, rate=None, split='spatial'))
    """

    method: ClassVar[str] = "svd"

    rank: int | None = None
    energy: float | None = None
    rate: float | None = None
    split: Literal["channel", "spatial"] = field(default="channel", kw_only=True)

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for settings out of range, or not one of three."""
        given = [each for each in ("rank", "energy", "rate") if getattr(self, each) is not None]
        if len(given) != 1:
            names = " and ".join(given) or "none"
            raise ValueError(f"svd: give one of rank, energy and rate, got {names}")
        for each in given:
            own_number(self, each)
        if self.rank is not None:
            _require_count("svd: rank", self.rank)
        if self.energy is not None and not is_number(self.energy):
            raise ValueError(f"svd: energy must be a number, got {self.energy!r}")
        if self.rate is not None and not (is_number(self.rate) and 1 < self.rate < math.inf):
            raise ValueError(f"svd: rate must be a finite number above 1, got {self.rate!r}")
        if self.split not in ("channel", "spatial"):
            raise ValueError(f"svd: split must be 'channel' or 'spatial', got {self.split!r}")

    def check_energy(self) -> None:
        """Raises ``ValueError`` for an energy that no layer has.

        It is asked of each layer, as a rank is, so that the error names one; and of texts, whose
        error names their place.
        """
        if self.energy is not None and not 0 < self.energy <= 1:
            raise ValueError(f"svd: energy must be above 0 and at most 1, got {self.energy!r}")

    def split_of(self, layer: nn.Module) -> Split:
        """How it cuts the weight of a layer; ``ValueError`` says why it cannot."""
        self.check_energy()
        split = SpatialSplit(layer) if self.split == "spatial" else ChannelSplit(layer)
        if self.rank is not None and self.rank > split.most:
            raise ValueError(
                f"rank {self.rank} is above {split.most}, the most that a matrix of "
                f"{split.rows} by {split.columns} has"
            )
        return split

    def rank_for(self, split: Split, singular: list[float]) -> int:
        """The rank, of singular values in falling order; 0 where the rate asks for less than 1."""
        if self.rank is not None:
            return self.rank
        if self.rate is not None:
            return int(math.prod(split.shape) / self.rate) // split.size
        assert self.energy is not None
        squares = [value**2 for value in singular]
        lost = sum(squares)
        allowed = lost * max(1 - self.energy, _NOTHING)
        rank = 0
        while rank < len(squares) and lost > allowed:
            lost -= squares[rank]
            rank += 1
        return max(rank, 1)

    @property
    def channels(self) -> int | None:
        """The rank, where it is known."""
        return self.rank

    def resolved(self, rank: int) -> SVD:
        """The same with a rank, as files keep it."""
        return SVD(rank=rank, split=self.split)


@dataclass(frozen=True)
class Basis(_Factor):
    """Every kernel of a convolution as a mix of few (Li et al. 2020, PENNI, arXiv 2005.07133).

    The layer becomes two convolutions: every input channel is filtered by each of ``d`` kernels,
    and a convolution of one position mixes the results. The kernels are the principal components
    of those that there are. With as many as a kernel has positions nothing is lost.

    Attributes:
        d: How many basis kernels, at most the positions of a kernel.
        shared: Whether all layers that a pattern chooses have the same coefficients, and basis
            kernels of their own (Wang et al. 2020, ACDC, arXiv 2009.02386). They must be of equal
            form: as many outputs, inputs and groups, and kernels of one size.

    Example:
        >>> str(Basis(d=5)), str(Basis(5, shared=True))
        ('basis(d=5)', 'basis(d=5,shared=true)')
    """

    method: ClassVar[str] = "basis"

    d: int
    shared: bool = False

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for settings out of range."""
        own_number(self, "d")
        _require_count("basis: d", self.d)
        if not isinstance(self.shared, bool):
            raise ValueError(f"basis: shared must be True or False, got {self.shared!r}")

    def split_of(self, layer: nn.Module) -> Split:
        """How it cuts the weight of a layer; ``ValueError`` says why it cannot."""
        split = KernelSplit(layer)
        if self.d > split.positions:
            size = "x".join(map(str, split.kernel))
            raise ValueError(
                f"d={self.d} is above {split.positions}, the positions of a kernel of {size}"
            )
        return split

    def rank_for(self, split: Split, singular: list[float]) -> int:
        """How many basis kernels."""
        del split, singular
        return self.d

    @property
    def channels(self) -> int:
        """What becomes of every channel."""
        return self.d

    def resolved(self, rank: int) -> Basis:
        """Itself: it has a rank."""
        del rank
        return self


#: What :func:`vq_plugin.factorize` does to a layer.
Factor: TypeAlias = SVD | Basis
FACTORS: Mapping[str, type[SVD] | type[Basis]] = {"svd": SVD, "basis": Basis}


def parse_factor(text: str) -> Factor:
    """Reads a factor from text such as ``"svd(rank=8)"``; ``str`` gives such a text back.

    Args:
        text: ``method(setting=value, ...)``.

    Returns:
        The factor.

    Raises:
        ValueError: If the method or a setting is unknown, missing, given twice or out of range.

    Example:
        >>> parse_factor("basis(d=5)")
        Basis(d=5, shared=False)
    """
    settings = read_call(text, "factor")
    method = settings.pop("method")
    if method not in FACTORS:
        raise ValueError(unknown("factor", method, list(FACTORS)))
    cls = FACTORS[str(method)]
    known = [each.name for each in fields(cls)]
    for name in settings:
        if name not in known:
            raise ValueError(unknown(f"{method}: setting", name, known))
    if cls is Basis and "d" not in settings:
        raise ValueError("basis: d is missing, the number of basis kernels")
    factor = cls(**settings)
    if isinstance(factor, SVD):
        factor.check_energy()
    return factor


def _require_count(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
