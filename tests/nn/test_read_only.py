"""Writes to a decoded weight would be lost: they are errors that say what to do."""

import copy
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.nn import coded_weights

WRITES: dict[str, Callable[[Tensor], object]] = {
    "data +=": lambda weight: weight.data.__iadd__(1),
    "data =": lambda weight: setattr(weight, "data", torch.zeros_like(weight)),
    "add_": lambda weight: weight.add_(1),
    "+=": lambda weight: weight.__iadd__(1),
    "copy_": lambda weight: weight.copy_(torch.zeros(8, 8)),
    "zero_": lambda weight: weight.zero_(),
    "an element": lambda weight: weight.__setitem__((0, 0), 1.0),
    "a view": lambda weight: weight.T[3:].fill_(1),
    "a part": lambda weight: weight.chunk(2)[1].mul_(2),
    "detached": lambda weight: weight.detach().clamp_(0, 1),
    "out=": lambda weight: torch.add(torch.zeros(8, 8), 1, out=weight),
    "foreach": lambda weight: torch._foreach_mul_([torch.zeros(8, 8), weight], 2.0),
    "a parameter of it": lambda weight: nn.Parameter(weight).add_(1),
}
HOLDERS: dict[str, tuple[nn.Module, str]] = {
    "layer": (nn.Linear(8, 8), "weight"),
    "table": (nn.Embedding(8, 8), "weight"),
    "parameter": (nn.RNN(8, 8), "weight_hh_l0"),
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("frozen", [True, False])
def test_operations_in_place_are_errors(holder: str, write: str, frozen: bool) -> None:
    module, name = HOLDERS[holder]
    small = vq.compress(module, vq.KM(k=4)).requires_grad_(not frozen)
    before = getattr(small, name).detach().clone()
    for context in (torch.no_grad, torch.inference_mode):
        with context(), pytest.raises(RuntimeError, match=r"compress it again.*\.clone\(\)"):
            WRITES[write](getattr(small, name))
    assert torch.equal(getattr(small, name), before)


def test_assignment_and_deletion_are_errors() -> None:
    for module in (nn.Linear(8, 8), nn.Embedding(8, 8), nn.Conv2d(8, 8, 1)):
        small = vq.compress(module, vq.KM(k=4))
        for value in (torch.zeros(8, 8), nn.Parameter(torch.zeros(8, 8)), None):
            with pytest.raises(RuntimeError, match="compress it again"):
                small.weight = value
        with pytest.raises(RuntimeError, match="compress it again"):
            del small.weight
        assert isinstance(small.weight, Tensor)


def test_initialization_changes_nothing_and_warns() -> None:
    small = vq.compress(nn.Linear(8, 8), vq.KM(k=4))
    before = small.weight.detach().clone()
    for initialize in (nn.init.zeros_, nn.init.normal_, nn.init.kaiming_uniform_):
        with pytest.warns(UserWarning, match="compress it again"):
            initialize(small.weight)
    assert torch.equal(small.weight, before)


def test_reading_is_as_ever() -> None:
    small = vq.compress(nn.Linear(8, 8), vq.KM(k=4))
    weight, plain = small.weight, coded_weights(small)[""].codebook_weight.decode()
    mine = weight.clone()
    mine.zero_()
    other = torch.zeros(8, 8)
    other.copy_(weight.detach())
    assert torch.equal(other, plain)
    assert weight.tolist() == plain.tolist()
    array = weight.detach().numpy()
    assert np.array_equal(array, plain.numpy())
    assert np.array_equal(np.asarray(weight.detach()), plain.numpy())
    with pytest.raises(ValueError, match="read-only"):
        array[0, 0] = 1
    assert type(copy.deepcopy(weight.detach())) is Tensor
    # Also of one that is computed with gradients.
    copied = copy.deepcopy([weight, weight])
    assert copied[0] is copied[1]
    assert torch.equal(copied[0].zero_(), torch.zeros_like(weight))
    assert type(pickle.loads(pickle.dumps(weight.detach()))) is Tensor
    file = io.BytesIO()
    torch.save({"weight": weight.detach()}, file)
    file.seek(0)
    assert torch.equal(torch.load(file, weights_only=True)["weight"], plain)
    weight.square().sum().backward()
    assert small.codebooks.grad is not None
    assert torch.equal(nn.functional.linear(plain, weight), nn.functional.linear(plain, plain))
