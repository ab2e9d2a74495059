"""What errors of two outputs of a recurrent layer do together: as the gradients of a model say."""

import copy
import statistics
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.calibration import input_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.nn import Slot, find_slots
from vq_plugin.sensitivity import felt_moments, sensitivities


class Recurrent(nn.Module):
    """A recurrent layer between others, of which the last output counts."""

    def __init__(self, layer: Callable[..., nn.Module]) -> None:
        super().__init__()
        self.into = nn.Linear(6, 12)
        self.body, self.out = layer(12, 16, batch_first=True), nn.Linear(16, 4)

    def forward(self, x: Tensor) -> Tensor:
        found: Tensor = self.out(self.body(self.into(x).tanh())[0][:, -1])
        return found


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU, nn.RNN])
def test_of_recurrent_layers_alone_two_outputs_are_asked_about(layer: Any) -> None:
    """Against products of gradients, one after the other."""
    torch.manual_seed(0)
    model = Recurrent(layer)
    slots = find_slots(model).values()
    data = [torch.randn(100, 5, 6) for _ in range(5)]
    moments = input_moments(model, slots, data)
    felt = sensitivities(model, slots, data, moments)
    found = felt_moments(slots, moments, felt)
    assert found["into"].together is None
    assert found["out"].together is None
    believed = 0
    for name in ("body.weight_ih_l0", "body.weight_hh_l0"):
        together, outputs = found[name].together, found[name].outputs
        if together is None or outputs is None:
            continue
        believed += 1
        assert torch.allclose(together.diagonal().double(), outputs, rtol=1e-4)
        gradients = torch.zeros(len(felt[name].gradients), *felt[name].shape)
        gradients[:, felt[name].reached] = felt[name].gradients.float()
        means = torch.stack([each @ each.T for each in gradients]).mean(0)
        every = means / float(moments[name].row_inputs(felt[name].shape)[0])
        apart = ~torch.eye(len(every), dtype=torch.bool) & (every != 0)
        shares = together[apart] / every[apart]
        assert torch.allclose(shares, shares[0].expand_as(shares), rtol=1e-2)
        assert min(abs(float(shares[0]) - share) for share in (0.8, 0.5, 0.2)) < 1e-2
    assert believed


def test_what_is_believed_does_not_depend_on_threads(set_threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    model = Recurrent(nn.LSTM)
    slot = find_slots(model)["body.weight_hh_l0"]
    data = [torch.randn(100, 5, 6) for _ in range(5)]
    moments = input_moments(model, [slot], data)
    felt = sensitivities(model, [slot], data, moments)
    found = []
    for count in (1, 2, 3):
        set_threads(count)
        found.append(felt_moments([slot], moments, felt)[slot.name].together)
    assert found[0] is not None
    assert all(each is not None and torch.equal(found[0], each) for each in found)


@pytest.mark.parametrize("layer", [nn.LSTM, nn.GRU])
def test_outputs_that_make_up_for_each_other_change_less_on_other_data(layer: Any) -> None:
    """In the mean of networks: some gradients of one say little of others."""
    ratios = []
    for seed in range(12):
        torch.manual_seed(seed)
        model = Recurrent(layer).eval()
        data, others = ([torch.randn(100, 5, 6) for _ in range(5)] for _ in range(2))
        slots = [slot for name, slot in find_slots(model).items() if name.startswith("body.")]
        moments = input_moments(model, slots, data)
        felt = sensitivities(model, slots, data, moments)
        known = felt_moments(slots, moments, felt)
        alone = {name: replace(each, together=None) for name, each in known.items()}
        one, two = (changed(model, slots, each, others) for each in (alone, known))
        ratios.append(two / one)
    assert statistics.geometric_mean(ratios) < 0.9


@torch.no_grad()
def changed(
    model: nn.Module, slots: list[Slot], moments: Mapping[str, Moments], data: list[Tensor]
) -> float:
    """The squared change of outputs by codes of some weights."""
    small = copy.deepcopy(model)
    for slot in slots:
        coded = quantize_weight(
            slot.weight, vq.Uniform(step=0.5, scale="row"), moments=moments[slot.name]
        )
        small.get_parameter(slot.name).copy_(coded.decode())
        if coded.bias_shift is not None:
            small.get_parameter(slot.name.replace("weight", "bias")).add_(coded.bias_shift)
    return sum(float((small(each) - model(each)).square().sum()) for each in data)
