"""Eager prepare and convert."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import convert, fuse_modules, prepare

import vq_plugin as vq
from vq_plugin.torch_ao import (
    assign_qconfigs,
    check_converted,
    fused_float,
    get_eager_mapping,
    observe_inputs,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

SCHEMES = {nn.Linear: vq.PQ(k=8, dim=4), "*": vq.KM(k=4)}
BATCHES = [torch.randn(8, 1, 6, 6) for _ in range(2)]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 8), nn.ReLU()
    ).eval()


def eager(model, schemes=SCHEMES, batches=()):
    prepared = prepare(assign_qconfigs(model, schemes))
    if batches:
        observe_inputs(prepared)
    with torch.no_grad():
        for batch in batches:
            prepared(batch)
    return check_converted(convert(prepared, mapping=get_eager_mapping()), schemes)


@pytest.mark.parametrize("batches", [[], BATCHES], ids=["plain", "calibrated"])
def test_equals_compress(assert_same, count_fits, batches):
    model = network()
    converted = eager(model, batches=batches)
    assert count_fits() == 2
    expected = vq.compress(model, SCHEMES, calibration=batches or None)
    assert_same(converted, expected, BATCHES[0])
    assert not [m for m in converted.modules() if m._forward_pre_hooks or m._forward_hooks]


@pytest.mark.parametrize("batches", [[], BATCHES], ids=["plain", "calibrated"])
def test_fused_modules(assert_same, count_fits, batches):
    model = fuse_modules(network(), [["0", "1", "2"], ["4", "5"]])
    converted = eager(model, batches=batches)
    assert count_fits() == 2
    expected = vq.compress(model, SCHEMES, calibration=batches or None)
    assert_same(converted, expected, BATCHES[0])


def test_files_fit_the_float_model(tmp_path, assert_same):
    model = network()
    converted = eager(model)
    vq.save(converted, tmp_path / "model.vq")
    assert_same(vq.load(tmp_path / "model.vq", network()), converted, BATCHES[0])
    assert [row.name for row in vq.summary(converted).rows] == ["0", "4"]


def test_every_kind_and_ties(assert_same, count_fits):
    model = nn.Sequential(
        nn.Embedding(10, 4), nn.Conv1d(3, 3, 3, padding=1), nn.Linear(4, 10, bias=False)
    ).eval()
    model[2].weight = model[0].weight
    words = torch.randint(0, 10, (2, 3))
    converted = eager(model, vq.KM(k=4))
    assert count_fits() == 2
    assert converted[0].codebooks is converted[2].codebooks
    assert_same(converted, vq.compress(model, vq.KM(k=4)), words)


def test_the_model_is_not_changed():
    model = network()
    before = copy.deepcopy(model).state_dict()
    eager(model)
    assert not any(hasattr(module, "qconfig") for module in model.modules())
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_user_hooks_stay_once():
    model = network()
    calls = []
    model[4].register_forward_pre_hook(lambda *_: calls.append(1))
    eager(model)(BATCHES[0])
    assert calls == [1]


def test_the_default_mapping_is_found_out():
    prepared = prepare(assign_qconfigs(network(), {"4": vq.KM(k=4)}))
    with pytest.raises(
        ValueError, match=r"'4': asked for km\(k=4\) but it is still Linear.*mapping="
    ):
        check_converted(convert(prepared, mapping={}), {"4": vq.KM(k=4)})


def test_a_forgotten_mapping_says_so():
    prepared = prepare(assign_qconfigs(network(), {"4": vq.KM(k=4)}))
    with pytest.raises(TypeError, match=r"mapping=get_eager_mapping\(\) to convert"):
        convert(prepared)


def test_a_bare_layer():
    with pytest.raises(ValueError, match=r"wrap it in nn.Sequential"):
        eager(nn.Linear(4, 4), vq.KM(k=4))


def test_bad_patterns_end_before_prepare():
    with pytest.raises(ValueError, match="'5x' matches nothing"):
        assign_qconfigs(network(), {"5x": vq.KM()})


def test_weights_that_are_not_finite_are_named():
    model = network()
    with torch.no_grad():
        model[4].weight[0, 0] = torch.inf
    with pytest.raises(ValueError, match="layer '4'"):
        eager(model)


def test_models_that_keep_activations() -> None:
    model = network()
    model[4].register_forward_hook(lambda layer, _, output: setattr(layer, "kept", output))
    model(BATCHES[0])
    assert not model[4].kept.is_leaf
    small = eager(model, batches=BATCHES)
    assert type(small[4]).__name__ == "CodebookLinear"
    alone = nn.Sequential(model[4]).eval()
    assert fused_float(alone).state_dict().keys() == {"0.weight", "0.bias"}
