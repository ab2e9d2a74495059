"""Batch norms after compression."""

import copy

import pytest
import torch
from torch import nn

import vq_plugin as vq


def network() -> nn.Sequential:
    model = nn.Sequential(
        nn.Conv2d(2, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 6, bias=False), nn.BatchNorm1d(6),
    )  # fmt: skip
    for _ in range(20):
        model(torch.randn(64, 2, 6, 6) + 1)
    return model.eval()


def test_statistics_are_those_of_the_batches() -> None:
    batches = [torch.randn(50, 2, 6, 6) + 1 for _ in range(3)]
    small = vq.compress(network(), vq.KM(k=2))
    assert vq.reestimate_norms(small, batches) is small
    with torch.no_grad():
        values = torch.stack([small[0](b).transpose(0, 1).flatten(1) for b in batches])
    assert torch.allclose(small[1].running_mean, values.mean((0, 2)), atol=1e-5)
    assert torch.allclose(small[1].running_var, values.var(2).mean(0), rtol=1e-4)


def test_nothing_else_changes_and_modes_and_momenta_stay() -> None:
    small = vq.compress(network(), vq.KM(k=2))
    small[1].train()
    small[1].momentum = 0.25
    before = copy.deepcopy(small)
    vq.reestimate_norms(small, [torch.randn(50, 2, 6, 6)])
    assert [m.training for m in small.modules()] == [m.training for m in before.modules()]
    assert small[1].momentum == 0.25
    running = ("running_mean", "running_var", "num_batches_tracked")
    for key, value in before.state_dict().items():
        assert torch.equal(value, small.state_dict()[key]) != key.endswith(running), key


@torch.no_grad()
def test_a_mean_that_compression_moved_is_taken_off_again() -> None:
    model = nn.Sequential(nn.Linear(256, 6, bias=False), nn.BatchNorm1d(6))
    inputs = torch.randn(2, 2000, 256) + 3
    vq.reestimate_norms(model.eval(), [inputs[0]])
    small = vq.compress(model, vq.KM(k=3))
    before = (small(inputs[1]) - model(inputs[1])).square().mean()
    vq.reestimate_norms(small, [inputs[0]])
    assert (small(inputs[1]) - model(inputs[1])).square().mean() < 0.5 * before


def test_a_failure_leaves_the_model_as_it_was() -> None:
    model = network()
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="layer '1': calibration gave it NaN or infinite inputs"):
        vq.reestimate_norms(model, [torch.full((4, 2, 6, 6), torch.nan)])
    with pytest.raises(ValueError, match="layer '1': calibration never ran it"):
        vq.reestimate_norms(model, lambda _: None)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert model[1].momentum == 0.1
    with pytest.raises(ValueError, match="no batch norm"):
        vq.reestimate_norms(nn.Linear(3, 3), [torch.randn(4, 3)])
