"""Statistics of inputs between a host's two calls: attached, kept, gathered, taken off."""

import copy

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations

from vq_plugin.hosting.statistics import (
    attach_statistics,
    detach_statistics,
    gathered_moments,
)
from vq_plugin.nn import Slot, find_slots
from vq_plugin.nn.shallow_copy import shallow_copy


def slots(**layers: nn.Module) -> dict[str, Slot]:
    return {name: find_slots(layer)[""] for name, layer in layers.items()}


def attach(*layers: nn.Module) -> list[nn.Module]:
    return attach_statistics(find_slots(layer)[""] for layer in layers)


@pytest.fixture
def model() -> nn.Sequential:
    return nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2))


def test_layers_that_gather_already_go_on(model):
    assert attach(model[0]) == [model[0]]
    model(torch.ones(3, 4))
    assert attach(model[0], model[2]) == [model[2]]
    assert model[0].input_stats["weight"].count == 3


def test_copies_and_state_dicts_keep_them(model):
    attach(*model[::2])
    copied = copy.deepcopy(model)
    copied(2 * torch.ones(5, 4))
    assert (model[0].input_stats["weight"].count, copied[0].input_stats["weight"].count) == (0, 5)
    model.load_state_dict(copied.state_dict())
    assert model[0].input_stats["weight"].total.tolist() == [[20.0] * 4]


def test_taking_them_off_leaves_no_trace(model):
    keys = list(model.state_dict())
    attach(*model[::2])
    detach_statistics(model, but=[model[2]])
    assert not hasattr(model[0], "input_stats")
    model(torch.ones(1, 4))
    assert model[2].input_stats["weight"].count == 1
    detach_statistics(model)
    assert list(model.state_dict()) == keys
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_moments_are_those_of_what_was_seen(model):
    attach(model[0])
    values = torch.randn(50, 4)
    model(values)
    (moments,) = gathered_moments(slots(first=model[0], last=model[2])).values()
    torch.testing.assert_close(moments.mean, values.mean(0, keepdim=True))


def test_layers_that_saw_nothing(model):
    attach(*model[::2])
    layers = slots(first=model[0], last=model[2])
    assert gathered_moments(layers, required=False) == {}
    with pytest.raises(ValueError, match="layer 'first': calibration never ran it"):
        gathered_moments(layers)
    model[0](torch.ones(1, 4))
    with pytest.raises(ValueError, match="layer 'last': calibration never ran it"):
        gathered_moments(layers, required=False)


@pytest.mark.parametrize("wrap", [lambda layer: layer, parametrizations.weight_norm])
def test_statistics_of_a_shallow_copy_do_not_touch_the_layer(wrap):
    layer = wrap(nn.Linear(4, 2))
    keys = list(layer.state_dict())
    copied = shallow_copy(layer)
    attach(copied)
    copied(torch.ones(3, 4))
    assert copied.input_stats["weight"].count == 3
    assert list(layer.state_dict()) == keys
    assert not layer._forward_pre_hooks
    ours, theirs = dict(copied.named_parameters()), dict(layer.named_parameters())
    assert all(ours[name] is theirs[name] for name in theirs)
