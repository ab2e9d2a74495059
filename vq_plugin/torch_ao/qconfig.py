"""A plan inside a ``QConfig``, as the host carries it from ``prepare`` to ``convert``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.ao.quantization import FakeQuantizeBase, ObserverBase, PlaceholderObserver, QConfig

from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import Plan

# No configuration of the host uses it for weights, and the host swaps a layer only where it
# takes the dtype of its weight for a quantized one.
TAG_DTYPE = torch.uint8

# Only layers that train give settings to the observers of weights. Elsewhere the host tries
# whether it may, and takes a TypeError for a no.
_FOR_TRAINING = (
    "get_qconfig_mapping(schemes) is for prepare_fx; give prepare_qat_fx "
    "get_qat_qconfig_mapping(model, schemes)"
)


class PlanObserver(ObserverBase):
    """Weight observer that observes nothing and hands the plan to the reference module.

    The host copies what ``calculate_qparams`` gives to ``from_float``, where the fit happens
    once; it makes several observers for each layer.
    """

    # The one scheme for whose parameters the host asks for no more than an axis.
    qscheme = torch.per_channel_affine_float_qparams
    ch_axis = 0

    def __init__(self, plan: Plan, **settings: Any) -> None:
        if settings:
            raise TypeError(_FOR_TRAINING)
        super().__init__(dtype=TAG_DTYPE)
        self.plan = plan
        self._ran = False

    def forward(self, x: Tensor) -> Tensor:
        """Returns the weight as it is."""
        # ``convert`` makes one and runs it once; layers that train run theirs for every batch.
        if self._ran:
            raise TypeError(_FOR_TRAINING)
        self._ran = True
        return x

    def calculate_qparams(self) -> tuple[Plan, None]:  # type: ignore[override]
        """The plan, in the place of a scale."""
        return self.plan, None


class CodebookFakeQuantize(CodebookFollower, FakeQuantizeBase):
    """A follower of a layer's weight, as the host's QAT layers want it.

    The switches of ``torch.ao.quantization`` work on it: ``disable_observer`` keeps codebooks and
    row scales, while codes go on following; ``disable_fake_quant`` trains in float.
    """

    dtype = TAG_DTYPE
    # As the host's embeddings ask for, and the one that asks for no more than an axis.
    qscheme = torch.per_channel_affine_float_qparams
    ch_axis = 0

    def __init__(self, plan: Plan, factory_kwargs: dict[str, Any] | None = None) -> None:
        """An empty one; the fit is on the device of the weight, whatever the host passes."""
        super().__init__(plan)

    @property
    def moves(self) -> bool:  # noqa: D102 - inherited
        return bool(self.observer_enabled[0])

    @property
    def quantizes(self) -> bool:  # noqa: D102 - inherited
        return bool(self.fake_quant_enabled[0])

    def calculate_qparams(self) -> tuple[CodebookFakeQuantize, None]:  # type: ignore[override]
        """Itself, in the place of a scale: the host hands it to the reference module."""
        return self, None


class FloatActivation(PlaceholderObserver):
    """Says that activations stay float; whoever asks for their scale converts by another mapping.

    Only the host's own mapping of eager mode does: its layers are int8.
    """

    def calculate_qparams(self) -> None:  # type: ignore[override]
        """``TypeError``: there are none."""
        raise TypeError(
            "these layers become codebook layers, with float activations: give "
            "mapping=get_eager_mapping() to convert"
        )


def plan_qconfig(plan: Plan, weight: Any = PlanObserver) -> QConfig:
    """A qconfig for weights by ``plan``, in the hands of ``weight``, and float activations."""
    return QConfig(  # type: ignore[no-untyped-call]
        activation=FloatActivation.with_args(dtype=torch.float32),
        weight=weight.with_args(plan=plan),
    )


def plan_of(module: nn.Module) -> Plan | None:
    """The plan in the qconfig of a prepared module, if it has one."""
    weight = getattr(getattr(module, "qconfig", None), "weight", None)
    observer = None if weight is None else weight()
    return observer.plan if isinstance(observer, PlanObserver) else None
