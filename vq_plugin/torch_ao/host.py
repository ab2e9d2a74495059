"""FX, as the tuner takes it."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

from vq_plugin.export.example import Example
from vq_plugin.folding import fold_batch_norms
from vq_plugin.select import Schemes
from vq_plugin.torch_ao.backend import get_backend_config
from vq_plugin.torch_ao.check import check_converted
from vq_plugin.torch_ao.mapping import get_qconfig_mapping


@dataclass(frozen=True)
class FX:
    """``prepare_fx`` and ``convert_fx``: a graph of layers, its batch norms folded."""

    name = "torch_ao"

    def fused(self, model: nn.Module, example: Example | None) -> nn.Module:
        """As :func:`vq_plugin.fold_batch_norms`: a module still, with the same numbers."""
        return fold_batch_norms(model)

    def convert(self, model: nn.Module, schemes: Schemes, example: Example | None) -> nn.Module:
        """A graph that calls codebook layers."""
        # The host wants an example, and reads none without int8.
        backend = get_backend_config()
        mapping = get_qconfig_mapping(schemes)
        prepared = prepare_fx(model, mapping, (example,), backend_config=backend)
        return check_converted(convert_fx(prepared, backend_config=backend), schemes)
