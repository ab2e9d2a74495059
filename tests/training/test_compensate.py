"""Layers left in float, against NumPy's least squares."""

import copy
import importlib

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq


def network(*, bias: bool = True) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 6, 3), nn.ReLU(), nn.Conv2d(6, 8, 3, groups=2, padding=1, bias=bias),
        nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 5, bias=bias),
    ).eval()  # fmt: skip


def inputs(seed: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(200, 2, 6, 6, generator=generator) + 0.5 for _ in range(2)]


@pytest.mark.parametrize("bias", [True, False])
def test_a_linear_layer_is_the_solution_of_least_squares(
    bias: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = importlib.import_module("vq_plugin.training.compensate")
    monkeypatch.setattr(module, "_RIDGE", 0.0)
    monkeypatch.setattr(module, "_FLOOR", 0.0)
    model = nn.Sequential(nn.Linear(9, 12), nn.Tanh(), nn.Linear(12, 4, bias=bias)).eval()
    x = torch.randn(300, 9) + 1
    small = vq.compensate(vq.compress(model, {"0": vq.KM(k=4)}), model, [x[:100], x[100:]])
    with torch.no_grad():
        met = small[1](small[0](x)).double().numpy()
        wanted = model(x).double().numpy()
    columns = np.hstack([met, np.ones((300, 1))]) if bias else met
    best, *_ = np.linalg.lstsq(columns, wanted, rcond=None)
    assert np.allclose(small[2].weight.detach().numpy().T, best[:12], atol=1e-4)
    if bias:
        assert np.allclose(small[2].bias.detach().numpy(), best[12], atol=1e-4)


@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_outputs_on_other_inputs_come_nearer(bias: bool) -> None:
    model = network(bias=bias)
    small = vq.compress(model, {"0": vq.KM(k=2)})
    unseen = torch.cat(inputs(1))
    before = (small(unseen) - model(unseen)).square().mean()
    nbytes = vq.summary(small).nbytes
    assert vq.compensate(small, model, inputs(0)) is small
    assert (small(unseen) - model(unseen)).square().mean() < before
    assert vq.summary(small).nbytes == nbytes


def test_layers_before_the_compressed_ones_and_the_float_model_stay() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    small = vq.compress(model, {"2": vq.KM(k=2)}, inputs(0))
    vq.compensate(small, model, lambda m: [m(x) for x in inputs(0)])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert torch.equal(small[0].weight, model[0].weight)
    assert not torch.equal(small[5].weight, model[5].weight)


def test_bad_input_is_an_error() -> None:
    model = network()
    with pytest.raises(ValueError, match="no Linear or convolution"):
        vq.compensate(vq.compress(model, vq.KM(k=2)), model, inputs(0))
    small = vq.compress(model, {"0": vq.KM(k=2)})
    with pytest.raises(ValueError, match="layer '2': calibration gave it NaN"):
        vq.compensate(small, model, [torch.full((2, 2, 6, 6), torch.nan)])


@pytest.mark.parametrize("batches", [[], [torch.zeros(0, 2, 6, 6)], lambda _: None])
def test_no_samples_are_an_error(batches: list[Tensor]) -> None:
    small = vq.compress(network(), {"0": vq.KM(k=4)})
    with pytest.raises(ValueError, match="no samples to the layers that are left in float"):
        vq.compensate(small, network(), batches)
