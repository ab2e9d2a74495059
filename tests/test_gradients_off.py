"""Whole-model calls where the caller has gradients off, and models that come from there."""

import copy
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


def _normed() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 4)).eval()


def _learned(**settings: Any) -> Callable[[nn.Module, torch.Tensor], nn.Module]:
    return lambda model, x: vq.learn(model, [x] * 4, epochs=1, **settings)


def _read(change: Callable[[nn.Module], nn.Module], path: Any) -> nn.Module:
    vq.save(vq.compress(change(_normed()), vq.KM(k=4)), path)
    return vq.load(path, _normed())


@pytest.mark.parametrize(
    "make",
    [
        lambda model, x: vq.fold_batch_norms(model),
        lambda model, x: vq.factorize(model, vq.SVD(rate=2)),
        lambda model, x: vq.factorize(model, vq.SVD(rate=2), [x]),
        lambda model, x: vq.merge_neurons(model, {"0": 4}, [x]),
        lambda model, x: vq.compress(model, vq.Factored(vq.SVD(rate=2), vq.KM(k=4)), [x]),
        _learned(rate_weight=0.1),
        _learned(rate_weight=0.1, rest="int8"),
        _learned(rate_weight=0.1, schemes=vq.PQ(k=4, dim=2, codebooks="tensor")),
        _learned(target_bytes=450),
        _learned(budget=vq.LossBudget(absolute=0.5), evaluate=lambda m: float(m(X).mean() < 9)),
    ],
    ids=[
        "fold",
        "svd",
        "calibrated",
        "merge",
        "factored",
        "learn",
        "biases",
        "vectors",
        "target",
        "budget",
    ],
)
def test_what_other_calls_make_in_inference_mode_trains(
    make: Callable[[nn.Module, torch.Tensor], nn.Module],
) -> None:
    with torch.inference_mode():
        made = make(_normed(), X.clone())
    for each in (*made.parameters(), *made.buffers()):
        assert not each.is_inference()
    made.train()(X).sum().backward()
    assert all(p.grad is not None for p in made.parameters() if p.requires_grad)


@pytest.mark.parametrize("change", [lambda m: vq.factorize(m, vq.SVD(rate=2)), vq.fold_batch_norms])
def test_smaller_models_read_in_inference_mode_train(change: Any, tmp_path: Any) -> None:
    with torch.inference_mode():
        small = _read(change, tmp_path / "m.vq")
    small(X).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.filterwarnings("ignore:codes are far off")
@pytest.mark.parametrize("within", [torch.inference_mode, torch.enable_grad])
def test_models_built_in_inference_mode_are_compressed(within: Callable[[], Any]) -> None:
    with torch.inference_mode():
        model = _normed()
    same = copy.deepcopy(model)
    with within():
        small = vq.compress(model, "auto", [X.clone()])
    expected = vq.compress(same, "auto", [X])
    for key, value in small.state_dict().items():
        assert torch.equal(value, expected.state_dict()[key])
    small.train()(X).sum().backward()
