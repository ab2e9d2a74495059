"""Layers that are called by keyword."""

import torch
from torch import Tensor, nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from vq_plugin.torch_ao import (
    check_converted,
    get_backend_config,
    get_qconfig_mapping,
    observe_inputs,
)


class ByKeyword(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(32, 16)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.fc(input=x)
        return out


def test_a_layer_called_by_keyword_is_observed() -> None:
    torch.manual_seed(0)
    model, batch = ByKeyword().eval(), torch.randn(64, 32) * torch.arange(1, 33)
    backend = get_backend_config()
    prepared = prepare_fx(model, get_qconfig_mapping(vq.PQ(k=4)), (batch,), backend_config=backend)
    observe_inputs(prepared)(batch)
    converted = check_converted(convert_fx(prepared, backend_config=backend), vq.PQ(k=4))
    expected = vq.compress(model, vq.PQ(k=4), calibration=[batch])
    assert torch.equal(converted(batch), expected(batch))
    assert not torch.equal(converted(batch), vq.compress(model, vq.PQ(k=4))(batch))
