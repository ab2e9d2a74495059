"""Codebooks train: right gradients, lower losses, fixed codes, honest rounding."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import CodebookLinear

SCHEMES = [
    vq.KM(k=6, scale="row", codebook_dtype="float32"),
    vq.KM(k=3, group=2, codebook_dtype="float32"),
    vq.PQ(k=5, dim=3, codebook_dtype="float32"),
    vq.PQ(k=5, dim=3, axis="out", codebooks="tensor", scale="row", codebook_dtype="float32"),
    vq.RQ(k=4, stages=3, dim=4, codebook_dtype="float32"),
]


def gathered(weight_grad: Tensor, layer: CodebookLinear) -> Tensor:
    """The codebooks' gradient by adding up the weight's, element by element."""
    stages, groups, books, _, dim = layer.codebooks.shape
    grad = torch.zeros_like(layer.codebooks)
    matrix = weight_grad if layer.scheme.geometry((1, 1)).axis == "in" else weight_grad.T
    if layer.scale is not None:
        matrix = matrix * layer.scale.detach().unsqueeze(1)
    group = getattr(layer.scheme, "group", None)
    for t in range(stages):
        for r in range(matrix.shape[0]):
            for column in range(matrix.shape[1]):
                s, j = divmod(column, dim)
                g = r // group if groups > 1 else 0
                grad[t, g, s if books > 1 else 0, layer.codes[t, r, s].item(), j] += matrix[
                    r, column
                ]
    return grad


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_a_center_gets_the_sum_of_its_weights_gradients(scheme: vq.Scheme) -> None:
    source = nn.Linear(10, 8).double()
    layer = CodebookLinear.from_float(source, scheme)
    x, target = torch.randn(6, 10).double(), torch.randn(6, 8).double()
    weight = layer.weight.detach().requires_grad_()
    functional.mse_loss(functional.linear(x, weight, source.bias), target).backward()
    functional.mse_loss(layer(x), target).backward()
    assert weight.grad is not None
    assert layer.codebooks.grad is not None
    assert torch.allclose(layer.codebooks.grad, gathered(weight.grad, layer))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_gradients_of_all_parameters_match_finite_differences(scheme: vq.Scheme) -> None:
    layer = CodebookLinear.from_float(nn.Linear(10, 8).double(), scheme)
    # float32 storage rounds what finite differences nudge; the values are float32 already.
    x = torch.randn(6, 10).double()
    for parameter in layer.parameters():
        loss = layer(x).square().sum()
        (grad,) = torch.autograd.grad(loss, parameter)
        flat, step = parameter.data.view(-1), 1e-3
        for i in range(0, flat.numel(), 3):
            old = flat[i].item()
            values = []
            for sign in (1, -1):
                flat[i] = old + sign * step
                values.append(layer(x).square().sum().item())
            flat[i] = old
            numeric = (values[0] - values[1]) / (2 * step)
            assert numeric == pytest.approx(grad.view(-1)[i].item(), rel=1e-4, abs=1e-4)


@pytest.mark.parametrize("codebook_dtype", ["float16", "bfloat16", "int8"])
def test_gradients_pass_through_the_rounding(codebook_dtype: str) -> None:
    scheme = vq.PQ(k=5, dim=3, scale="row", codebook_dtype=codebook_dtype)  # type: ignore[arg-type]
    layer = CodebookLinear.from_float(nn.Linear(10, 8), scheme)
    with torch.no_grad():
        layer.codebooks.add_(1e-6)
    weight = layer.weight
    weight.sum().backward()
    assert layer.codebooks.grad is not None
    assert layer.scale is not None
    assert layer.scale.grad is not None
    used = torch.stack([torch.bincount(layer.codes[0, :, s].long(), minlength=5) for s in range(4)])
    assert ((layer.codebooks.grad[0, 0].abs().sum(2) > 0) == (used > 0)).all()
    assert (layer.scale.grad != 0).all()


def model() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 16, 10)
    )


def train(small: nn.Module, steps: int = 30) -> list[float]:
    x, y = torch.randn(40, 1, 6, 6), torch.arange(40) % 10
    optimizer = torch.optim.Adam([p for p in small.parameters() if p.requires_grad], 1e-2)
    losses = []
    for _ in range(steps):
        loss = functional.cross_entropy(small(x), y)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return losses


@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=16, keep_zeros=True),
        vq.PQ(k=8, dim=4, scale="row"),
        vq.RQ(k=4, dim=4, codebook_dtype="bfloat16"),
        vq.PQ(k=8, dim=4, codebook_dtype="int8"),
        vq.Binary(scale="row"),
    ],
    ids=str,
)
def test_training_lowers_the_loss_and_codes_stay(scheme: vq.Scheme) -> None:
    small = vq.compress(model(), scheme)
    codes = {key: value.clone() for key, value in small.state_dict().items() if "codes" in key}
    losses = train(small)
    assert losses[-1] < 0.9 * losses[0]
    for key, value in codes.items():
        assert torch.equal(small.state_dict()[key], value)


@pytest.mark.parametrize("grad", [True, False])
def test_a_trained_layer_computes_with_values_its_file_can_hold(grad: bool) -> None:
    small = vq.compress(model(), vq.PQ(k=8, dim=4))
    train(small, 3)
    layer = small[4]  # type: ignore[index]
    with torch.set_grad_enabled(grad):
        weight = layer.weight.detach()
    assert torch.equal(weight, weight.half().float())
    # The parameter itself moves in steps that half precision could not take.
    assert not torch.equal(layer.codebooks.detach(), layer.codebooks.detach().half().float())
