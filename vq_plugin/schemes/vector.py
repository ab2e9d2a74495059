"""Schemes of sub-vectors: ``PQ``, ``RQ`` and ``Signs``."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

from vq_plugin.schemes.geometry import Axis, CutAxis, Geometry
from vq_plugin.schemes.registry import register_scheme
from vq_plugin.schemes.scheme import Scheme, require_centers, require_choice, require_positive

CodebookSharing = Literal["subspace", "tensor"]
Layout = Literal["flat", "channels"]

# So that a code takes a byte, and kernels read it.
_MOST_PATTERNS = 256


@register_scheme(fit="vq_plugin.fit.schemes:fit_pq")
@dataclass(frozen=True, repr=False)
class PQ(Scheme):
    """Product quantization (Gong et al. 2014, section 3.2.3, eq. 5).

    Every row of the 2-D view is cut into sub-vectors of ``dim`` weights; each subspace, or the
    whole tensor, has its own codebook of ``k`` centers. Single weights (``dim=1``) with a codebook
    for every input are for inputs that differ in size, such as features as they were measured;
    calibrated, centers are then where the outputs of the model feel a row most.

    Attributes:
        k: Centers per codebook. Reduced to the number of distinct sub-vectors where lower.
        dim: Length of a sub-vector. A length that ``dim`` does not divide is padded inside.
        axis: ``"in"`` cuts along the inputs, ``"out"`` along the outputs of the layer.
        codebooks: ``"subspace"`` for a codebook per subspace (the paper's PQ), ``"tensor"`` for
            one codebook that all subspaces share.
        layout: Of what the kernel of a convolution is cut along the inputs. ``"flat"``: rows as
            torch stores them, all kernel positions of a channel, then the next channel.
            ``"channels"``: sub-vectors are channels of one kernel position, and positions share
            the codebooks (Quantized CNN, Wu et al. 2016, arXiv 1512.06473, section 3.2); every
            position is padded to whole sub-vectors. The two are the same where a weight has one
            position, where it has fewer channels than ``dim``, and for ``axis="out"``.

    Example:
        >>> str(PQ(k=16, dim=4, axis="out"))
        'pq(k=16,dim=4,axis=out)'
    """

    method: ClassVar[str] = "pq"

    k: int = 16
    dim: int = 4
    axis: Axis = "in"
    codebooks: CodebookSharing = "subspace"
    layout: Layout = field(default="flat", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "dim")
        _check_cut(self)

    @property
    def feels(self) -> bool:
        """With single weights and a codebook for every input: whose centers some rows need most."""
        return self.dim == 1 and self.axis == "in" and self.codebooks == "subspace"

    def geometry(self, shape: tuple[int, ...]) -> Geometry:  # noqa: D102 - inherited
        return self.cut(
            shape, axis=_cut_axis(self), dim=self.dim, shared=self.codebooks == "tensor"
        )


@register_scheme(fit="vq_plugin.fit.schemes:fit_rq")
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
        layout: As in :class:`PQ`.

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
    layout: Layout = field(default="flat", kw_only=True)

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "stages")
        if self.dim is not None:
            require_positive(self, "dim")
        _check_cut(self)

    def geometry(self, shape: tuple[int, ...]) -> Geometry:  # noqa: D102 - inherited
        return self.cut(
            shape,
            axis=_cut_axis(self),
            dim=self.dim,
            stages=self.stages,
            shared=self.codebooks == "tensor",
        )


@register_scheme(fit="vq_plugin.fit.schemes:fit_signs")
@dataclass(frozen=True, repr=False)
class Signs(Scheme):
    """A sign for every weight and a size for every block of weights.

    Blocks run along the inputs, as sub-vectors of :class:`PQ` with a codebook for the whole tensor
    do: its centers are all patterns of signs, at every size (micro-structured weight unification,
    Lin et al. 2021, arXiv 2106.08301). A weight takes ``1 + log2(levels) / block`` bits.
    :func:`vq_plugin.finetune` moves centers one by one, and so away from one size.

    Attributes:
        levels: Sizes to choose from.
        block: Weights that have one size. There are ``levels * 2**block`` centers, at most 256.

    Example:
        >>> import torch
        >>> import vq_plugin as vq
        >>> weight = torch.tensor([[0.5, -0.5, 2.0, 2.0], [-0.6, 0.4, 3.0, -1.0]])
        >>> vq.quantize_weight(weight, Signs(levels=2, block=2)).decode()
        tensor([[ 0.5000, -0.5000,  2.0000,  2.0000],
                [-0.5000,  0.5000,  2.0000, -2.0000]])
    """

    method: ClassVar[str] = "signs"
    # Free centers would not have one size.
    calibrates: ClassVar[bool] = False
    trains: ClassVar[bool] = False

    levels: int = 4
    block: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_positive(self, "levels")
        require_positive(self, "block")
        if self.block > 8 or self.k > _MOST_PATTERNS:
            raise ValueError(
                f"signs: levels={self.levels} and block={self.block} make more than "
                f"{_MOST_PATTERNS} centers, levels * 2**block: lower one of them, or use pq"
            )

    @property
    def k(self) -> int:
        """Centers: every pattern of signs at every size."""
        return self.levels << self.block

    def geometry(self, shape: tuple[int, ...]) -> Geometry:  # noqa: D102 - inherited
        return self.cut(shape, dim=self.block)


def _cut_axis(scheme: PQ | RQ) -> CutAxis:
    return "channels" if (scheme.axis, scheme.layout) == ("in", "channels") else scheme.axis


def _check_cut(scheme: PQ | RQ) -> None:
    require_centers(scheme)
    require_choice(scheme, "axis", ("in", "out"))
    require_choice(scheme, "codebooks", ("subspace", "tensor"))
    require_choice(scheme, "layout", ("flat", "channels"))
