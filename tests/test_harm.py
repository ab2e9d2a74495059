"""What a change of a weight does, where one way to tell is blind."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from tests.fit.problems import matrix_of
from vq_plugin.calibration import input_moments
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import damped
from vq_plugin.harm import Harm
from vq_plugin.nn import find_slots
from vq_plugin.output_harm import values
from vq_plugin.sensitivity import Sensitivity, felt_moments, sensitivities


def known(model: nn.Module, data: list[Tensor]) -> Harm:
    slots = find_slots(model)
    moments = input_moments(model, slots.values(), data)
    felt = sensitivities(model, slots.values(), data, moments, projected=values)
    felt_too = felt_moments(slots.values(), moments, felt)
    return Harm.of(slots[""].weight, felt_too[""], felt[""])


def test_few_samples_do_not_hide_what_others_feel() -> None:
    """A change that all samples are blind to, as what a fit by few samples leaves is."""
    torch.manual_seed(0)
    model, few = nn.Linear(64, 16, bias=False), torch.randn(12, 64)
    harm = known(model, [few])
    assert harm.felt is not None
    change = 0.1 * torch.randn(16, 64)
    # Away from all that the samples show.
    seen = torch.linalg.qr(few.T).Q
    change -= change @ seen @ seen.T
    others = torch.randn(1000, 64)
    with torch.no_grad():
        real = (others @ change.T).square().mean() / model(others).var()
    assert harm.felt.harm(change) < 1e-3 * real
    assert harm(change) > 0.05 * real


def test_rows_that_go_together_are_not_hidden_by_errors_of_rows() -> None:
    """Many small errors that push one output the same way."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 256, bias=False), nn.Linear(256, 1, bias=False))
    nn.init.constant_(model[1].weight, 1.0)
    data = [torch.randn(100, 8) for _ in range(5)]
    slot = find_slots(model)["0"]
    moments = input_moments(model, [slot], data)
    felt = sensitivities(model, [slot], data, moments, projected=values)
    harm = Harm.of(slot.weight, felt_moments([slot], moments, felt)["0"], felt["0"])
    together = 0.01 * torch.randn(1, 8).expand(256, 8)
    apart = together * torch.tensor([1.0, -1.0]).repeat(128).unsqueeze(1)
    assert harm(together) == pytest.approx(felt["0"].harm(together))
    assert harm(together) > 20 * harm(apart)


def test_without_gradients_relative_errors_of_live_rows_count_alike() -> None:
    weight = torch.randn(4, 8) * torch.tensor([1.0, 100.0, 0.0, 1e-3]).unsqueeze(1)
    harm = Harm.of(weight, None, None)
    for row, part in enumerate((1 / 3, 1 / 3, 0.0, 1 / 3)):
        change = torch.zeros_like(weight)
        change[row] = 0.5 * weight[row]
        assert harm(change) == pytest.approx(0.25 * part)
    assert harm.of_noise(weight) == pytest.approx(1.0)


def test_noise_does_what_it_was_said_to() -> None:
    torch.manual_seed(0)
    model, data = nn.Linear(32, 64), [torch.randn(100, 32) for _ in range(5)]
    harm = known(model, data)
    weight = model.weight.detach()
    noise = torch.randn(64, 32) * weight.square().mean(1, keepdim=True).sqrt()
    assert harm(noise) == pytest.approx(harm.of_noise(weight), rel=0.3)


def test_moments_without_second_ones() -> None:
    harm = Harm.of(torch.ones(2, 3), Moments(torch.tensor([1.0, 4.0, 0.0])), None)
    assert harm(torch.tensor([[0.0, 1.0, 0.0], [0.0, 0.0, 5.0]])) == pytest.approx(4 / 5 / 2)


def test_errors_of_rows_go_together_as_far_as_it_is_believed() -> None:
    """By the definition of the objective, where gradients show nothing."""
    torch.manual_seed(0)
    weight, second = torch.randn(6, 5), torch.eye(5) + 0.3
    half = torch.randn(6, 6)
    together = half @ half.T + torch.eye(6)
    felt = Sensitivity(torch.zeros(2, 6, 5).bfloat16(), torch.arange(6), (6, 5))
    size = together.diagonal()
    moments = Moments(torch.ones(()), second.unsqueeze(0), None, size.double(), together)
    change = torch.randn(6, 5)
    inputs = matrix_of(damped(moments))[0]
    for doubt in (0.0, 0.4):
        judged = together * (1 - doubt) + doubt * size.diag()
        expected = float((judged @ change @ inputs @ change.T).trace())
        harm = Harm.of(weight, replace(moments, doubt=doubt), felt)
        assert harm(change) == pytest.approx(expected, rel=1e-4)
