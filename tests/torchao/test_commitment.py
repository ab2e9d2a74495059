"""The commitment term in the trainings of torchao's two calls."""

import numpy as np
import pytest
import torch
from torch import nn
from torchao.quantization import quantize_
from torchao.quantization.pt2e.quantize_pt2e import prepare_qat_pt2e

import vq_plugin as vq
from vq_plugin.torchao import VQQuantizer, VQWeightOnlyConfig, commitment_loss

KM = vq.KM(k=4)


def nearest(weight: torch.Tensor, codebooks: torch.Tensor) -> np.ndarray:
    """Each number's distance from the center next to it."""
    centers = codebooks.half().float().flatten().numpy()
    return np.abs(weight.detach().numpy()[..., None] - centers).min(-1)


def test_a_prepared_layer() -> None:
    torch.manual_seed(0)
    model, batch = nn.Sequential(nn.Linear(12, 10)).train(), torch.randn(4, 12)
    quantize_(model, VQWeightOnlyConfig(KM, step="prepare"))
    model(batch)
    loss = commitment_loss(model, 0.5)
    weight = model[0].parametrizations.weight
    apart = nearest(weight.original, weight[0].codebooks)
    assert loss.item() == pytest.approx(0.5 * float((apart**2).sum()), rel=1e-4)
    loss.backward()
    np.testing.assert_allclose(weight.original.grad.abs().numpy(), apart, rtol=1e-4, atol=1e-7)


def test_an_exported_program_with_a_batch_norm() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4)).train()
    with torch.no_grad():
        model[1].weight.uniform_(0.5, 2)
    batch = torch.randn(8, 2, 6, 6)
    prepared = prepare_qat_pt2e(
        torch.export.export(model, (batch,)).module(), VQQuantizer(KM, is_qat=True)
    )
    variances = model[1].running_var.clone()
    task = prepared(batch).square().mean()
    loss = commitment_loss(prepared, 0.01)
    folded = model[0].weight * (model[1].weight / torch.sqrt(variances + 1e-5)).reshape(4, 1, 1, 1)
    (quantizer,) = (m for m in prepared.modules() if hasattr(m, "codebooks"))
    apart = nearest(folded, quantizer.codebooks)
    assert loss.item() == pytest.approx(0.01 * float((apart**2).sum()), rel=1e-4)
    (task + loss).backward()
    assert all(parameter.grad is not None for parameter in prepared.parameters())
