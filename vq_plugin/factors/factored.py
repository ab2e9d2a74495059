"""A layer as a product of two, both in codes: what a setting may say in the place of a scheme."""

from __future__ import annotations

import re
from dataclasses import dataclass

from vq_plugin.arguments import brief
from vq_plugin.factors.factors import SVD, Basis, Factor, parse_factor
from vq_plugin.schemes import Scheme, parse_scheme

# Behind a factor's settings, which it cannot do without; numbers such as 1e+5 have no parenthesis.
_JOINT = re.compile(r"(?<=\))\s*\+")


@dataclass(frozen=True)
class Factored:
    """Two layers in the place of one, by ``factor``, and the weights of both by ``scheme``.

    :func:`vq_plugin.compress` and the candidates of :func:`vq_plugin.tune` take it where a scheme
    may stand; hosts do not, which convert the layers that are there. It is found in one go: the
    second layer is fitted to what the codes of the first have left of the outputs.

    Attributes:
        factor: Of one layer; ``Basis(shared=True)`` is of several.
        scheme: Of both weights.

    Raises:
        TypeError: If one of them is of the wrong type.
        ValueError: If the factor is of several layers.

    Example:
        >>> import vq_plugin as vq
        >>> str(Factored(vq.SVD(rate=8), vq.KM(k=16)))
        'svd(rate=8)+km(k=16)'
        >>> Factored.parse("svd(rank=4) + km(k=4)")
        Factored(svd(rank=4)+km(k=4))
    """

    factor: Factor
    scheme: Scheme

    def __post_init__(self) -> None:
        if not isinstance(self.factor, SVD | Basis):
            raise TypeError(f"expected a factor such as vq.SVD(rate=8), got {brief(self.factor)}")
        if not isinstance(self.scheme, Scheme):
            raise TypeError(f"expected a scheme such as vq.KM(k=16), got {brief(self.scheme)}")
        if isinstance(self.factor, Basis) and self.factor.shared:
            raise ValueError(
                f"{self.factor} is of several layers, and this of one: factorize the model with "
                "vq.factorize, then compress what it gives"
            )

    @classmethod
    def parse(cls, text: str) -> Factored | None:
        """Reads ``"factor+scheme"``; ``None`` for a text that is of no such form.

        ``ValueError`` if the factor or the scheme cannot be read.
        """
        factor, joint, scheme = _JOINT.sub("\0", text, count=1).partition("\0")
        return cls(parse_factor(factor), parse_scheme(scheme)) if joint else None

    @property
    def method(self) -> str:
        """Those of both; the results of one kind are off alike from what is expected."""
        return f"{self.factor.method}+{self.scheme.method}"

    @property
    def feels(self) -> bool:
        """As :attr:`vq_plugin.Scheme.feels`."""
        return self.scheme.feels

    def __str__(self) -> str:
        """As :meth:`parse` reads it."""
        return f"{self.factor}+{self.scheme}"

    def __repr__(self) -> str:
        """Short, as of schemes."""
        return f"Factored({self})"
