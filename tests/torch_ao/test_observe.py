"""Activation-aware convert equals compress(calibration=...)."""

import copy

import pytest
import torch
from torch import nn
from torch.ao.quantization import get_default_qconfig_mapping
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx

import vq_plugin as vq
from vq_plugin.torch_ao import (
    check_converted,
    fused_float,
    get_backend_config,
    get_qconfig_mapping,
    observe_inputs,
)

pytestmark = pytest.mark.filterwarnings("ignore:torch.ao.quantization is deprecated")

SCHEME = vq.PQ(k=4, dim=2)
BATCHES = [torch.randn(8, 2, 6, 6) * torch.tensor([1.0, 20.0])[:, None, None] for _ in range(3)]


def network() -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4)
    ).eval()


def prepare(model, schemes=SCHEME, example=BATCHES[0]):
    mapping = get_qconfig_mapping(schemes)
    return prepare_fx(model, mapping, (example,), backend_config=get_backend_config())


@torch.no_grad()
def calibrate(prepared, batches=BATCHES):
    for batch in batches:
        prepared(batch)


def finish(prepared, schemes=SCHEME):
    return check_converted(convert_fx(prepared, backend_config=get_backend_config()), schemes)


def test_equals_compress_with_calibration(convert, assert_same):
    model = network()
    expected = vq.compress(model, SCHEME, calibration=BATCHES)
    assert not torch.equal(expected[3].codes, vq.compress(model, SCHEME)[3].codes)
    assert_same(convert(model, SCHEME, BATCHES[0], BATCHES), expected, BATCHES[0])


def test_equals_compress_of_the_fused_model(convert, assert_same):
    model = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3, groups=2)
    )
    model(BATCHES[1])
    model.eval()
    expected = vq.compress(fused_float(model), SCHEME, calibration=BATCHES)
    assert_same(convert(model, SCHEME, BATCHES[0], BATCHES), expected, BATCHES[0])


class Words(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 4)
        self.body = nn.Linear(4, 4)

    def forward(self, x):
        return self.body(torch.tanh(self.body(self.embed(x))))


def test_embeddings_and_shared_layers(convert, assert_same):
    model, words = Words().eval(), torch.randint(0, 10, (5, 7))
    expected = vq.compress(model, SCHEME, calibration=[words])
    assert_same(convert(model, SCHEME, words, [words]), expected, words)


def test_statistics_survive_copies_and_the_state_dict(assert_same):
    model = network()
    expected = vq.compress(model, SCHEME, calibration=BATCHES)
    prepared = observe_inputs(prepare(model))
    calibrate(prepared, BATCHES[:1])
    copied = copy.deepcopy(prepared)
    calibrate(copied, BATCHES[1:])
    assert prepared.state_dict()["3.0.input_stats.weight.count"] == 8

    resumed = observe_inputs(prepare(network()))
    resumed.load_state_dict(copied.state_dict())
    assert_same(finish(resumed), expected, BATCHES[0])
    assert_same(finish(copied), expected, BATCHES[0])


def test_observing_twice_counts_once(assert_same):
    model = network()
    prepared = observe_inputs(observe_inputs(prepare(model)))
    calibrate(prepared)
    assert_same(finish(prepared), vq.compress(model, SCHEME, calibration=BATCHES), BATCHES[0])


def test_nothing_is_left_of_it(convert):
    model = network()
    converted = convert(model, SCHEME, BATCHES[0], BATCHES)
    assert not [key for key in converted.state_dict() if "input_stats" in key]
    assert not [key for key in model.state_dict() if "input_stats" in key]
    assert not [m for m in (*model.modules(), *converted.modules()) if m._forward_pre_hooks]


def test_layers_that_are_left_are_not_observed():
    prepared = observe_inputs(prepare(network(), {nn.Linear: SCHEME}))
    keys = {key for key in prepared.state_dict() if key.endswith("input_stats.weight.total")}
    assert keys == {"3.0.input_stats.weight.total", "5.input_stats.weight.total"}


def test_beside_int8_layers(assert_same):
    model, schemes = network(), {"3": SCHEME}
    mapping = get_qconfig_mapping(schemes, get_default_qconfig_mapping("x86"))
    backend = get_backend_config()
    prepared = prepare_fx(model, mapping, (BATCHES[0],), backend_config=backend)
    calibrate(observe_inputs(prepared))
    converted = finish(prepared, schemes)
    expected = vq.compress(model, schemes, calibration=BATCHES)
    assert torch.equal(converted.get_submodule("3").codes, expected[3].codes)


def test_calibration_that_never_ran():
    prepared = observe_inputs(prepare(network(), {"5": SCHEME}))
    with pytest.raises(ValueError, match="layer '5': calibration never ran it"):
        finish(prepared, {"5": SCHEME})


def test_layers_without_a_name_are_shown_on_one_line():
    prepared = observe_inputs(prepare(network(), SCHEME))
    with pytest.raises(ValueError, match="calibration never ran it") as caught:
        finish(prepared)
    shown = "layer 'Conv2d(2, 4, kernel_size=(3, 3), stride=(1, 1))': "
    assert str(caught.value).startswith(shown)


def test_calibration_with_nan():
    prepared = observe_inputs(prepare(network(), {"0": SCHEME}))
    calibrate(prepared, [torch.full((1, 2, 6, 6), torch.nan)])
    with pytest.raises(ValueError, match="layer '0': calibration gave it NaN"):
        finish(prepared, {"0": SCHEME})


def test_a_model_without_codebook_layers():
    prepared = prepare_fx(network(), get_default_qconfig_mapping("x86"), (BATCHES[0],))
    with pytest.raises(ValueError, match=r"no layer of the prepared model.*get_qconfig_mapping"):
        observe_inputs(prepared)
