"""Whole-model calls where the caller has gradients off, and models that come from there."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import mse_loss

import vq_plugin as vq

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()


@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_training_turns_gradients_on(context: Callable[[], Any]) -> None:
    model = net()
    small = vq.compress(model, vq.KM(k=4))
    before = mse_loss(small(X), model(X)).item()
    with context():
        inputs = X.clone()
        vq.finetune(small, [inputs] * 10, teacher=model, loss=mse_loss, epochs=2)
        sparse = vq.prune(model, [inputs] * 3, 0.5)
    assert mse_loss(small(X), model(X)).item() < before
    assert sum(int((p == 0).sum()) for p in sparse.parameters() if p.dim() == 2) >= 48


@pytest.mark.filterwarnings("ignore:codes are far off")
@pytest.mark.parametrize("schemes", [vq.KM(k=4), vq.PQ(k=4, dim=4, scale="row"), "auto"], ids=str)
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (net, X),
        (lambda: nn.Conv2d(8, 8, 3), X.reshape(1, 8, 4, 4)),
        (lambda: nn.LSTM(8, 8), X),
        (lambda: nn.Sequential(nn.Embedding(16, 8)), torch.arange(16)),
    ],
    ids=["linear", "convolution", "recurrent", "embedding"],
)
def test_models_made_in_inference_mode_train(
    schemes: Any, calibrated: bool, build: Callable[[], nn.Module], inputs: torch.Tensor
) -> None:
    model = build()
    with torch.inference_mode():
        small = vq.compress(model, schemes, [inputs.clone()] if calibrated else None)
        small(inputs)
    output = small(inputs)
    (output[0] if isinstance(output, tuple) else output).sum().backward()
    assert all(p.grad is not None for p in small.parameters() if p.requires_grad)


def test_files_read_in_inference_mode_train(tmp_path: Any) -> None:
    model = net()
    vq.save(vq.compress(model, vq.KM(k=4)), tmp_path / "m.vq")
    with torch.inference_mode():
        small = vq.load(tmp_path / "m.vq", model)
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())
