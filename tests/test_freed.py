"""What a call has made or read is freed with it, without a collection of cycles."""

import gc
import weakref
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

X = torch.randn(32, 8, generator=torch.Generator().manual_seed(0))


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Linear(16, 4)).eval()


@pytest.fixture
def uncollected() -> Iterator[None]:
    gc.collect()
    gc.disable()
    yield
    gc.enable()


def _tuned(model: nn.Module, _: Path) -> object:
    wanted = model(X).argmax(1)

    def agreement(small: nn.Module) -> Tensor:
        return (small(X).argmax(1) == wanted).float()

    return vq.tune(model, agreement, calibration=[X], max_trials=3)


def _read(model: nn.Module, folder: Path) -> object:
    vq.save(vq.compress(model, vq.KM(k=4)), folder / "m.vq")
    return vq.load(folder / "m.vq", model)


@pytest.mark.filterwarnings("ignore:codes are far off")
@pytest.mark.parametrize(
    "call",
    [
        lambda model, _: vq.compress(model, vq.KM(k=4)),
        lambda model, _: vq.compress(model, "auto", [X]),
        lambda model, _: vq.compress(model, vq.Factored(vq.SVD(rate=2), vq.KM(k=4)), [X]),
        lambda model, _: vq.factorize(model, vq.SVD(rate=2), [X]),
        lambda model, _: vq.finetune(vq.compress(model, vq.KM(k=4)), [X], teacher=model),
        lambda model, _: vq.prune(model, [X] * 3, 0.5),
        lambda model, _: vq.learn(model, [X], rate_weight=0.1, epochs=1),
        _read,
        _tuned,
    ],
    ids=["plain", "preset", "factored", "svd", "finetune", "prune", "learn", "file", "tune"],
)
def test_neither_model_outlives_the_call(
    call: Callable[[nn.Module, Path], Any], tmp_path: Path, uncollected: None
) -> None:
    # What torch imports and keeps the first time is no matter.
    call(net(), tmp_path)
    gc.collect()
    model = net()
    model[0].register_forward_hook(lambda *_: None)  # type: ignore[operator]
    made = call(model, tmp_path)
    small = made.model if isinstance(made, vq.TuneResult) else made
    small(X)
    seen = [weakref.ref(part) for each in (model, small) for part in (each, *each.parameters())]
    del model, made, small
    assert not any(each() is not None for each in seen)
