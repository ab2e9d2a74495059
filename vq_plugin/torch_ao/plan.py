"""What ``convert`` is to do to a float layer, and what it has done already."""

from __future__ import annotations

from collections.abc import MutableMapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from torch import Tensor, nn
from torch.utils.weak import WeakIdKeyDictionary

from vq_plugin.importance import detach_moments, named_moments
from vq_plugin.model import compress_layer, tie_layer
from vq_plugin.nn import CodebookLayer, codebook_type
from vq_plugin.schemes import Scheme

Rules: TypeAlias = tuple[tuple[type[nn.Module], Scheme | None], ...]


def _by_identity() -> MutableMapping[Any, CodebookLayer]:
    return WeakIdKeyDictionary()


@dataclass
class Fitted:
    """The layers of one ``convert`` call, found by what they came from.

    The host visits a module once per call of it, and knows nothing of tied weights. The keys are
    weak: a prepared model that is kept around must not keep the float weights alive.
    """

    modules: MutableMapping[nn.Module, CodebookLayer] = field(default_factory=_by_identity)
    weights: MutableMapping[Tensor, CodebookLayer] = field(default_factory=_by_identity)


@dataclass(frozen=True)
class Plan:
    """What to do to the float layers of one qconfig.

    It travels inside the qconfig, hence deep copies of it are equal to it, and those that are
    made together share what they have fitted.

    Attributes:
        rules: Scheme by class of the float layer; the first class that fits decides.
        seed: Seed of the fits.
        fitted: What is done already, shared among the plans of one model.
        name: Name of the layer in its model, where the plan is for one layer.
    """

    rules: Rules
    seed: int
    fitted: Fitted = field(compare=False)
    name: str | None = None

    def scheme_for(self, module: nn.Module) -> Scheme | None:
        """The scheme for a float layer, or ``None`` to leave it as it is."""
        if codebook_type(module) is None:
            return None
        return next((scheme for kind, scheme in self.rules if isinstance(module, kind)), None)

    def convert(self, module: nn.Module) -> nn.Module:
        """The codebook layer for a float layer, fitted at the first call only.

        Args:
            module: Float layer, with the statistics of
                :func:`vq_plugin.torch_ao.observe_inputs` or without.

        Returns:
            The codebook layer, or ``module`` itself where no rule fits it.

        Raises:
            ValueError: If the layer cannot be compressed, calibration did not reach it, or a
                layer with the same weight has another scheme.
        """
        scheme = self.scheme_for(module)
        if scheme is None:
            return module
        if module not in self.fitted.modules:
            self.fitted.modules[module] = self._fit(module, scheme)
        return self.fitted.modules[module]

    def _fit(self, module: nn.Module, scheme: Scheme) -> CodebookLayer:
        # The host says no more of a layer than its settings, unless the plan is for it alone.
        name = self.name or repr(module)
        # Taken off the layer, as eager ``convert`` keeps hooks.
        observed = detach_moments(module)
        moments = None if observed is None else named_moments(name, module, observed)
        weight = module.weight
        assert isinstance(weight, Tensor)
        first = self.fitted.weights.get(weight)
        if first is None:
            layer = compress_layer(name, module, scheme, moments=moments, seed=self.seed)
            self.fitted.weights[weight] = layer
            return layer
        if first.scheme != scheme:
            raise ValueError(
                f"layer {name!r} shares its weight with a layer that was compressed with "
                f"{first.scheme}: choose {scheme} for both, or for neither"
            )
        return tie_layer(module, first)
