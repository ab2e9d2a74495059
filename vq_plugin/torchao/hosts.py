"""The two ways of torchao, as the tuner takes them."""

from __future__ import annotations

from collections import OrderedDict
from dataclasses import dataclass
from types import MethodType

from torch import nn
from torch.fx import GraphModule
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

from vq_plugin.export.example import Example, exported
from vq_plugin.select import Schemes, select
from vq_plugin.torchao.check import check_converted
from vq_plugin.torchao.config import VQWeightOnlyConfig
from vq_plugin.torchao.fused import fused_float
from vq_plugin.torchao.quantizer import VQQuantizer


@dataclass(frozen=True)
class Quantize:
    """``quantize_``, which takes every weight, and leaves batch norms as they are."""

    name = "torchao"

    def fused(self, model: nn.Module, example: Example | None) -> nn.Module:
        """The model itself."""
        return model

    def convert(
        self,
        model: nn.Module,
        schemes: Schemes,
        example: Example | None,
    ) -> nn.Module:
        """Changes the model in place."""
        chosen = select(model, schemes).items()
        configs = OrderedDict((name, VQWeightOnlyConfig(scheme)) for name, scheme in chosen)
        quantize_(model, FqnToConfig(configs), filter_fn=None)
        return check_converted(model, schemes)


@dataclass(frozen=True)
class PT2E:
    """``prepare_pt2e`` and ``convert_pt2e``: an exported program, its batch norms folded.

    Attributes:
        dynamic_batch: Whether the program takes batches of all sizes; else that of the example.
    """

    dynamic_batch: bool = True
    name = "pt2e"

    def fused(self, model: nn.Module, example: Example | None) -> nn.Module:
        """As :func:`vq_plugin.torchao.fused_float`."""
        return fused_float(model, _given(example))

    def convert(self, model: nn.Module, schemes: Schemes, example: Example | None) -> nn.Module:
        """A graph that calls codebook layers; ``eval()`` of it does nothing, as it has no modes."""
        program = exported(model, _given(example), dynamic_batch=self.dynamic_batch)
        prepared = prepare_pt2e(program.module(), VQQuantizer(schemes))
        converted: GraphModule = check_converted(convert_pt2e(prepared), schemes)
        converted.eval = MethodType(_unchanged, converted)  # type: ignore[method-assign]
        return converted


def _given(example: Example | None) -> Example:
    if example is None:
        raise ValueError("it is exported with a batch of calibration data: pass calibration=")
    return example


def _unchanged(model: GraphModule) -> GraphModule:
    return model
