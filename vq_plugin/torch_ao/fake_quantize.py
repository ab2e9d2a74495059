"""The weight fake-quantizer of quantization-aware training."""

from __future__ import annotations

from typing import Any

import torch
from torch.ao.quantization import FakeQuantizeBase

from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import Plan
from vq_plugin.torch_ao.qconfig import TAG_DTYPE


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
