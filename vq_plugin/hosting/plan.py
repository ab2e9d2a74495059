"""Which scheme a float layer gets."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TypeAlias

from torch import nn

from vq_plugin.hosting.fits import Fits
from vq_plugin.model import tied_weights
from vq_plugin.nn import codebook_type
from vq_plugin.schemes import Scheme
from vq_plugin.select import Schemes, select

Rules: TypeAlias = tuple[tuple[type[nn.Module], Scheme | None], ...]


@dataclass(frozen=True)
class Plan:
    """What a host is to do to the float layers that it finds the plan at.

    It travels inside the host's settings, hence deep copies of it are equal to it, and those that
    are made together share what they have fitted.

    Attributes:
        rules: Scheme by class of the float layer; the first class that fits decides.
        seed: Seed of the fits.
        fits: What is done already, shared among the plans of one model.
        name: Name of the layer in its model, where the plan is for one layer.
    """

    rules: Rules
    seed: int
    fits: Fits = field(compare=False)
    name: str | None = None

    def scheme_for(self, module: nn.Module) -> Scheme | None:
        """The scheme for a float layer, or ``None`` to leave it as it is."""
        if codebook_type(module) is None:
            return None
        return next((scheme for kind, scheme in self.rules if isinstance(module, kind)), None)

    def convert(self, module: nn.Module) -> nn.Module:
        """The codebook layer for a float layer, or ``module`` itself where no rule fits it.

        Raises:
            ValueError: As :meth:`vq_plugin.hosting.fits.Fits.layer`.
        """
        scheme = self.scheme_for(module)
        if scheme is None:
            return module
        return self.fits.layer(module, scheme, seed=self.seed, name=self.name)


def plans(model: nn.Module, schemes: Schemes, *, seed: int = 0) -> dict[str, Plan]:
    """A plan for every chosen layer.

    Args:
        model: Float model.
        schemes: One scheme for every layer that can take it, or patterns to schemes, as in
            :func:`vq_plugin.compress`.
        seed: Seed of the fits.

    Returns:
        Plans by layer name, in the order of the model.

    Raises:
        TypeError: If a pattern or a scheme is of the wrong type.
        ValueError: If a pattern matches nothing, a layer cannot be compressed, or layers that
            share a weight would get different schemes.

    Example:
        >>> import vq_plugin as vq
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
        >>> plan = plans(model, {"1": vq.KM(k=4)})["1"]
        >>> type(plan.convert(model[1])).__name__
        'CodebookLinear'
    """
    chosen = select(model, schemes)
    tied_weights(model, chosen)
    fits = Fits()
    return {name: Plan(((nn.Module, scheme),), seed, fits, name) for name, scheme in chosen.items()}
