"""The check of what a host has done, where layers have slots of every form."""

import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.hosting.check import _empty, check_schemes
from vq_plugin.nn import find_slots


@pytest.mark.parametrize("kind", [nn.LSTM, nn.MultiheadAttention, nn.Linear, nn.LSTMCell])
def test_an_empty_layer_has_only_parameters_that_its_class_may_have(kind: type[nn.Module]) -> None:
    for name, value in vars(_empty(kind)).items():
        assert not isinstance(value, torch.Tensor) or name.isidentifier()
        assert ":" not in name
        assert "." not in name


def test_a_host_that_left_a_layer_among_others_is_told() -> None:
    converted = nn.Sequential(nn.LSTM(4, 4), nn.Linear(4, 4))
    assert set(find_slots(converted)) == {"0.weight_ih_l0", "0.weight_hh_l0", "1"}
    with pytest.raises(ValueError, match=r"'1': asked for .* but it is a layer of the host's"):
        check_schemes(
            converted,
            {"1": vq.KM(k=4)},
            host="a host",
            float_type=lambda module: (
                type(module) if not isinstance(module, nn.Sequential) else None
            ),
            functions={},
            why_not=lambda _: "it is a layer of the host's",
        )
