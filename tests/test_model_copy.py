"""Copies of models: hooks and functions are the copy's, kept activations are no obstacle."""

import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq

X = torch.randn(4, 8, generator=torch.Generator().manual_seed(0))


class Watched(nn.Module):
    """Hooks of two kinds: a method of the model, and a function that knows the model."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 4)
        self.seen: list[Tensor] = []
        self.register_buffer("gain", torch.ones(1))
        self.fc.register_forward_hook(self.keep)
        self.head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * self.gain,))

    def keep(self, _: nn.Module, __: Any, output: Tensor) -> None:
        self.seen.append(output)

    def forward(self, value: Tensor) -> Tensor:
        return self.head(self.fc(value))


def by_compress(_: Path) -> tuple[Any, Any]:
    model = Watched()
    return model, vq.compress(model, vq.KM(k=4))


def by_load(folder: Path) -> tuple[Any, Any]:
    model = Watched()
    vq.save(vq.compress(Watched(), vq.KM(k=4)), folder / "m.vq")
    return model, vq.load(folder / "m.vq", model)


def by_prune(_: Path) -> tuple[Any, Any]:
    model = Watched()
    pruned = vq.prune(model, [X] * 3, 0.5, loss=lambda ours, _: ours.square().mean(), teacher=model)
    model.seen.clear()
    pruned.seen.clear()  # type: ignore[operator, union-attr]
    return model, pruned


@pytest.mark.parametrize("way", [by_compress, by_load, by_prune])
def test_hooks_are_the_copys(way: Callable[[Path], tuple[Any, Any]], tmp_path: Path) -> None:
    model, small = way(tmp_path)
    small(X)
    assert (len(model.seen), len(small.seen)) == (0, 1)
    small.gain.zero_()
    assert torch.equal(small(X), small.head.bias.expand(4, 4))
    assert not torch.equal(model(X), model.head.bias.expand(4, 4))


def test_a_hook_that_counts_goes_on_with_its_own_count() -> None:
    counts = {"calls": 0}
    model = nn.Sequential(nn.Linear(8, 8))

    def count(*_: Any) -> None:
        counts["calls"] += 1

    model[0].register_forward_pre_hook(count)
    vq.compress(model, vq.KM(k=4))(X)
    assert counts == {"calls": 1}


def test_hooks_of_gradients_stay_on() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU())
    seen: list[object] = []
    model[0].register_full_backward_hook(lambda *_: seen.append(1))
    vq.compress(model, vq.KM(k=4))(X.clone().requires_grad_()).sum().backward()
    assert seen == [1]


class Keeps(nn.Module):
    """Keeps what it has computed: itself, in lists and in mappings."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(8, 8)
        self.maps: dict[str, list[Tensor]] = {}
        self.history: list[tuple[Tensor]] = []

    def forward(self, value: Tensor) -> Tensor:
        self.last = self.fc(value)
        self.maps["last"] = [self.last]
        self.history.append((self.last,))
        return self.last


def test_kept_activations() -> None:
    model = Keeps()
    output = model(X)
    assert output.grad_fn is not None
    small: Any = vq.compress(model, vq.KM(k=64))
    assert torch.equal(small.last, output)
    assert small.last is small.maps["last"][0] is small.history[0][0] is not output
    loss = functional.mse_loss
    vq.prune(model, [X] * 3, 0.5, teacher=model, loss=loss)
    vq.finetune(small, [X], teacher=model, loss=loss)


def test_a_load_hook_that_wants_its_module_finds_the_copys(tmp_path: Path) -> None:
    def build() -> nn.Module:
        layer = nn.Linear(8, 8)
        layer.owners = []  # type: ignore[assignment]
        layer.register_load_state_dict_pre_hook(lambda module, *_: module.owners.append(module))
        return nn.Sequential(layer)

    small: Any = vq.compress(build(), vq.KM(k=4))
    small.load_state_dict(small.state_dict())
    assert small[0].owners == [small[0]]


class Weak(nn.Module):
    """Weak references, as those of modules that would be in a circle else."""

    def __init__(self) -> None:
        super().__init__()
        self.fc, self.more = nn.Linear(8, 8), nn.Module()
        self.more.owner = weakref.ref(self)  # type: ignore[assignment]
        self.first, self.other = weakref.ref(self.fc), weakref.ref(nn.Module)

    def forward(self, x: Tensor) -> Tensor:
        return self.first()(x)  # type: ignore[misc, no-any-return]


def test_weak_references_are_to_the_copys_parts() -> None:
    model = Weak()
    small = vq.compress(model, vq.KM(k=4))
    assert small.first() is small.fc  # type: ignore[operator]
    assert small.more.owner() is small  # type: ignore[operator, union-attr]
    assert small.other is model.other
    assert model.first() is model.fc
