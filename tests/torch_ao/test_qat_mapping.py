"""Which layers train, and what is refused before any training is lost."""

from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qat_qconfig_mapping
from torch.ao.quantization.quantize_fx import prepare_qat_fx
from torch.nn.utils import parametrizations, prune

import vq_plugin as vq
from vq_plugin.torch_ao import get_backend_config, get_qat_qconfig_mapping, get_qconfig_mapping

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(144, 8))


def test_patterns_become_names():
    schemes = {nn.Linear: vq.PQ(), "re:[03]": vq.KM(k=4), "*": None}
    mapping = get_qat_qconfig_mapping(network(), schemes)
    assert set(mapping.module_name_qconfigs) == {"0", "3"}
    with pytest.raises(ValueError, match="'re:4' matches nothing"):
        get_qat_qconfig_mapping(network(), {"re:4": vq.KM(k=4)})


def test_the_base_is_not_changed():
    base = get_default_qat_qconfig_mapping("x86")
    mapping = get_qat_qconfig_mapping(network(), {"3": vq.PQ()}, base)
    assert str(mapping.global_qconfig) == str(base.global_qconfig)
    assert set(mapping.module_name_qconfigs) == {"3"}
    assert not base.module_name_qconfigs


class Own(nn.Linear):
    """A layer of a user's own class."""


class Listed(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList([nn.Linear(4, 4), nn.Linear(4, 4)])

    def forward(self, x):
        for block in self.blocks:
            x = block(x)
        return x


def pruned() -> nn.Module:
    return prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5)


@pytest.mark.parametrize(
    ("layer", "why"),
    [
        (Own(4, 4), "layer '0' is Own: torch.ao trains plain torch.nn layers"),
        (parametrizations.weight_norm(nn.Linear(4, 4)), "layer '0' is ParametrizedLinear"),
        (pruned(), "layer '0': .*prune.remove"),
        (nn.Embedding(4, 4, max_norm=1.0), "layer '0': max_norm=1.0"),
        (
            nn.TransformerEncoderLayer(4, 1),
            r"'0.self_attn.in_proj_weight' is a weight of MultiheadAttention, which no codebook",
        ),
    ],
    ids=lambda value: type(value).__name__,
)
def test_what_torch_ao_cannot_train_is_refused(layer, why):
    with pytest.raises(ValueError, match=why):
        get_qat_qconfig_mapping(nn.Sequential(layer, nn.Linear(4, 4)), vq.KM(k=4))


def test_a_bare_layer_and_bad_weights_are_refused():
    with pytest.raises(ValueError, match=r"wrap it in nn\.Sequential"):
        get_qat_qconfig_mapping(nn.Linear(4, 4), vq.KM(k=4))
    model = network()
    with torch.no_grad():
        model[3].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="layer '3': the weight holds 1 NaN or infinite"):
        get_qat_qconfig_mapping(model, vq.KM(k=4))


def test_layers_in_lists_train():
    assert set(get_qat_qconfig_mapping(Listed(), vq.KM(k=4)).module_name_qconfigs) == {
        "blocks.0",
        "blocks.1",
    }


@pytest.mark.parametrize("schemes", [vq.KM(k=4), {"0": vq.KM(k=4)}, {"re:3": vq.KM(k=4)}])
def test_the_mapping_for_prepare_fx_is_refused(schemes):
    # By names the host puts it into the layer with batch norm, where it shows in training.
    def two_steps():
        inputs, backend = torch.randn(2, 1, 8, 8), get_backend_config()
        mapping = get_qconfig_mapping(schemes)
        prepared = prepare_qat_fx(network().train(), mapping, (inputs,), backend_config=backend)
        for _ in range(2):
            prepared(inputs)

    with pytest.raises(TypeError, match=r"give prepare_qat_fx get_qat_qconfig_mapping\(model"):
        two_steps()
