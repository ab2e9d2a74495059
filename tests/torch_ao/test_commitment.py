"""The terms of vector-quantized training, beside what torch and numpy compute by themselves."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.ao import quantization
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.torch_ao import commitment_loss
from vq_plugin.workloads import digits

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

INPUTS = torch.randn(40, 12, generator=torch.Generator().manual_seed(0))


def moved(prepared: nn.Module, size: float = 0.02) -> nn.Module:
    """After a pass, with the weights a little away from where their codes were chosen."""
    prepared(INPUTS)
    with torch.no_grad():
        for parameter in prepared.parameters():
            parameter += size * torch.randn(
                parameter.shape, generator=torch.Generator().manual_seed(parameter.numel())
            )
    return prepared


def decoded(layer: nn.Module) -> np.ndarray:
    """The weight that a product quantizer of two numbers a code stands for, place by place."""
    quantizer = layer.weight_fake_quant
    books = quantizer.codebooks.half().float().numpy()
    _, rows, subspaces = quantizer.codes.shape
    matrix = np.zeros((rows, 2 * subspaces), np.float32)
    for row in range(rows):
        for at in range(subspaces):
            code = int(quantizer.codes[0, row, at])
            matrix[row, 2 * at : 2 * at + 2] = books[0, 0, at, code]
    return matrix


def test_it_is_the_squared_distance_and_pulls_the_weight_alone(prepare_qat) -> None:
    model = nn.Sequential(nn.Linear(12, 10), nn.Tanh(), nn.Linear(10, 8))
    prepared = moved(prepare_qat(model, vq.PQ(k=3, dim=2), INPUTS))
    prepared(INPUTS)
    loss = commitment_loss(prepared, beta=0.25)
    layers = [prepared.get_submodule(name) for name in ("0", "2")]
    apart = [layer.weight.detach().numpy() - decoded(layer) for layer in layers]
    assert loss.item() == pytest.approx(0.25 * sum(float((each**2).sum()) for each in apart))
    loss.backward()
    for layer, each in zip(layers, apart, strict=True):
        np.testing.assert_allclose(layer.weight.grad.numpy(), 2 * 0.25 * each, rtol=1e-4, atol=1e-7)
        assert layer.bias.grad is None


def test_it_adds_to_the_gradient_of_the_task(prepare_qat) -> None:
    prepared = moved(prepare_qat(nn.Sequential(nn.Linear(12, 10)), vq.PQ(k=3, dim=2), INPUTS))
    layer = prepared.get_submodule("0")
    (prepared(INPUTS).square().mean() + commitment_loss(prepared, beta=0.5)).backward()
    both, apart = layer.weight.grad.clone(), layer.weight.detach() - torch.tensor(decoded(layer))
    weight = torch.tensor(decoded(layer), requires_grad=True)
    functional.linear(INPUTS, weight, layer.bias.detach()).square().mean().backward()
    torch.testing.assert_close(both, weight.grad + apart)


def test_codebooks_go_down_the_gradient_of_their_own_term(prepare_qat) -> None:
    scheme = vq.PQ(k=3, dim=2, codebook_dtype="float32")
    prepared = moved(prepare_qat(nn.Sequential(nn.Linear(12, 10)), scheme, INPUTS))
    layer = prepared.get_submodule("0")
    quantizer = layer.weight_fake_quant
    before = quantizer.codebooks.clone()
    prepared(INPUTS)
    # The second term of the paper's equation 3, of centers that have a gradient.
    books, points = before[0, 0].clone().requires_grad_(), layer.weight.detach().reshape(10, 6, 2)
    codes = quantizer.codes[0].long()
    term = sum((points[:, at] - books[at, codes[:, at]]).square().sum() for at in range(6))
    term.backward()
    counts = torch.stack([torch.bincount(codes[:, at], minlength=3) for at in range(6)])
    expected = before[0, 0] - 0.1 / (2 * counts.clamp_min(1)).unsqueeze(2) * books.grad
    torch.testing.assert_close(quantizer.codebooks[0, 0], expected.detach())
    assert not torch.equal(before, quantizer.codebooks)


def test_a_batch_norm_is_in_the_weight_that_is_pulled(prepare_qat) -> None:
    model = nn.Sequential(nn.Linear(12, 10, bias=False), nn.BatchNorm1d(10))
    prepared = prepare_qat(model, vq.PQ(k=3, dim=2), INPUTS)
    layer = prepared.get_submodule("0")
    with torch.no_grad():
        layer.bn.weight.uniform_(0.5, 2, generator=torch.Generator().manual_seed(3))
    variances = layer.bn.running_var.clone()
    prepared(INPUTS)
    commitment_loss(prepared, beta=1).backward()
    weight = layer.weight.detach().requires_grad_()
    gain = layer.bn.weight.detach().requires_grad_()
    folded = weight * (gain / torch.sqrt(variances + layer.bn.eps)).unsqueeze(1)
    (folded - torch.tensor(decoded(layer))).square().sum().backward()
    torch.testing.assert_close(layer.weight.grad, weight.grad)
    torch.testing.assert_close(layer.bn.weight.grad, gain.grad)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 12), nn.Linear(12, 12)
        self.second.weight = self.first.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.second(self.first(x))


@pytest.mark.parametrize("training", [True, False])
def test_a_shared_weight_counts_once(prepare_qat, training: bool) -> None:
    prepared = moved(prepare_qat(Tied(), vq.PQ(k=3, dim=2), INPUTS))
    prepared(INPUTS)
    prepared.train(training)(INPUTS)
    layer = prepared.get_submodule("first")
    apart = layer.weight.detach().numpy() - decoded(layer)
    assert commitment_loss(prepared, 1).item() == pytest.approx(float((apart**2).sum()))


def test_pinned_zeros_are_left_alone(prepare_qat) -> None:
    layer = nn.Linear(12, 10)
    with torch.no_grad():
        layer.weight[layer.weight.abs() < 0.1] = 0
    zeros = layer.weight == 0
    prepared = prepare_qat(nn.Sequential(layer), vq.KM(k=4, keep_zeros=True), INPUTS)
    prepared(INPUTS)
    commitment_loss(prepared).backward()
    gradient = prepared.get_submodule("0").weight.grad
    assert zeros.any()
    assert not gradient[zeros].any()
    assert gradient[~zeros].any()


def test_layers_that_run_in_float_count_nothing(prepare_qat) -> None:
    prepared = prepare_qat(nn.Sequential(nn.Linear(12, 10)), vq.KM(k=4), INPUTS)
    prepared.apply(quantization.disable_fake_quant)
    prepared(INPUTS)
    assert commitment_loss(prepared).item() == 0
    prepared.apply(quantization.enable_fake_quant)
    prepared(INPUTS)
    assert commitment_loss(prepared).item() > 0
    prepared.apply(quantization.disable_fake_quant)
    prepared(INPUTS)
    assert commitment_loss(prepared).item() == 0


def test_a_copy_needs_a_pass_of_its_own(prepare_qat) -> None:
    model = nn.Sequential(nn.Linear(12, 10), nn.BatchNorm1d(10))
    prepared = prepare_qat(model, vq.KM(k=4), INPUTS)
    prepared(INPUTS)
    again = copy.deepcopy(prepared)
    with pytest.raises(ValueError, match="no layer has run with codebooks yet"):
        commitment_loss(again)
    before = set(again.state_dict()), len(list(again.parameters()))
    assert prepared(INPUTS).sum() == again(INPUTS).sum()
    assert commitment_loss(prepared).item() == commitment_loss(again).item() > 0
    assert before == (set(again.state_dict()), len(list(again.parameters())))


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_codebooks_are_learned_from_scratch_on_the_digits(prepare_qat, seed: int) -> None:
    scheme, (images, labels) = vq.PQ(k=4, dim=8), digits.load().train
    torch.manual_seed(seed)
    prepared = prepare_qat(digits.DigitsCNN(), scheme, images[:1], seed=seed)
    optimizer = torch.optim.Adam(prepared.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 8 * 22)
    first: dict[str, Tensor] = {}
    for _ in range(8):
        for batch in torch.split(torch.randperm(len(images)), 32)[:22]:
            optimizer.zero_grad()
            loss = functional.cross_entropy(prepared(images[batch]), labels[batch])
            (loss + commitment_loss(prepared, 0.01)).backward()
            optimizer.step()
            schedule.step()
            first = first or {k: v.clone() for k, v in prepared.state_dict().items()}
    last = prepared.state_dict()
    for kind in ("codes", "codebooks"):
        name = f"classifier.0.weight_fake_quant.{kind}"
        assert not torch.equal(first[name], last[name])
    fitted = digits.test(vq.compress(digits.model(), scheme, seed=seed))
    assert digits.test(prepared) > max(fitted, 0.88)


def test_bad_input(prepare_qat) -> None:
    model = nn.Sequential(nn.Linear(12, 10))
    with pytest.raises(ValueError, match="no layer of the model learns to be a codebook layer"):
        commitment_loss(model)
    prepared = prepare_qat(model, vq.KM(k=4), INPUTS)
    with pytest.raises(ValueError, match="after the forward pass"):
        commitment_loss(prepared)
    prepared(INPUTS)
    for beta in (-0.1, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="beta must be a finite number of at least 0"):
            commitment_loss(prepared, beta)
    with pytest.raises(TypeError, match="beta must be a number"):
        commitment_loss(prepared, "0.1")
