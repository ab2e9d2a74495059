"""Biases that layers share: they stay shared, and calibration does not move them."""

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.replace import swap

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0)) + 1


def build() -> nn.Module:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8), nn.LayerNorm(8), nn.LSTM(8, 2))
    model[1].bias = model[2].bias = model[3].bias_ih_l0 = model[0].bias
    return model


@pytest.mark.parametrize("calibration", [None, [X]], ids=["plain", "calibrated"])
@pytest.mark.parametrize("schemes", [vq.KM(k=4), {"0": vq.KM(k=4)}, {"3": vq.KM(k=4)}])
def test_ties_of_biases(schemes: Any, calibration: Any, tmp_path: Path) -> None:
    model = build().eval()
    small: Any = vq.compress(model, schemes, calibration)
    vq.save(small, tmp_path / "m.vq")
    for each in (small, vq.load(tmp_path / "m.vq", build().eval())):
        assert each[0].bias is each[1].bias is each[2].bias is each[3].bias_ih_l0
        assert torch.equal(each[0].bias, model[0].bias)  # type: ignore[index]
        assert each[0].bias is not model[0].bias  # type: ignore[index]


def test_a_bias_of_its_own_is_moved_still() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 8))
    small: Any = vq.compress(model, vq.KM(k=2), [X])
    assert not torch.equal(small[0].bias, model[0].bias)  # type: ignore[index]


def test_hosts_that_convert_in_place_keep_them_and_what_layers_have_beside() -> None:
    model: Any = build()
    model[0].gain = 2.0
    bias = model[0].bias
    model[1].register_forward_hook(lambda *_: None)
    swap(model, {"0": vq.quantize_weight(model[0].weight, vq.KM(k=4))})
    assert model[0].bias is model[1].bias is bias
    assert model[0].gain == 2.0


def test_in_place_bound_methods_follow_their_layer() -> None:
    model: Any = nn.Sequential(nn.Linear(8, 8))
    model[0].owner = model[0].type
    swap(model, {"0": vq.quantize_weight(model[0].weight, vq.KM(k=4))})
    assert model[0].owner.__self__ is model[0]
