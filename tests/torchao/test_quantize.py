"""``quantize_`` with codebooks: what it makes, and what it leaves."""

import copy
from collections import OrderedDict

import pytest
import torch
from torch import nn
from torchao.quantization import (
    FqnToConfig,
    Int8DynamicActivationInt8WeightConfig,
    Int8WeightOnlyConfig,
    IntxWeightOnlyConfig,
    quantize_,
)

import vq_plugin as vq
from vq_plugin.nn import CodebookLinear, coded_weights
from vq_plugin.torchao import VQWeightOnlyConfig, check_converted

PQ = vq.PQ(k=8, dim=4)
LAYERS = (nn.Linear, nn.Conv1d, nn.Embedding)


def layers(module: nn.Module, name: str) -> bool:
    return isinstance(module, LAYERS)


@pytest.fixture
def mlp() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.Sequential(nn.Linear(32, 16))
    ).eval()


def test_linear_layers_are_those_of_compress(mlp, assert_same):
    expected = vq.compress(mlp, PQ, seed=3)
    quantize_(mlp, VQWeightOnlyConfig(PQ, seed=3))
    assert_same(check_converted(mlp, PQ), expected, torch.randn(5, 64))


def test_a_filter_chooses_other_layers(words, tokens, assert_same):
    expected = vq.compress(words, PQ)
    quantize_(words, VQWeightOnlyConfig(PQ), layers)
    assert_same(check_converted(words, PQ), expected, tokens[0])


@pytest.mark.parametrize(
    ("module", "shape"),
    [(nn.LSTM(16, 16), (5, 2, 16)), (nn.ConvTranspose2d(4, 8, 3), (2, 4, 5, 5))],
    ids=["LSTM", "ConvTranspose2d"],
)
def test_modules_without_a_codebook_layer_hold_codes(module, shape):
    model, value = nn.ModuleDict({"it": module}).eval(), torch.randn(shape)
    expected = vq.compress(model, vq.KM(k=4))
    quantize_(model, VQWeightOnlyConfig(vq.KM(k=4)), lambda _, name: name == "it")
    check_converted(model, vq.KM(k=4))
    assert coded_weights(model).keys() == coded_weights(expected).keys()
    ours, theirs = model["it"](value), expected["it"](value)
    assert torch.equal(ours[0], theirs[0])


def test_attention_with_the_projection_that_it_runs_itself():
    model, value = nn.Sequential(nn.MultiheadAttention(16, 2)).eval(), torch.randn(3, 2, 16)
    expected = vq.compress(model, vq.KM(k=4))
    quantize_(model, VQWeightOnlyConfig(vq.KM(k=4)), lambda _, name: name == "0")
    check_converted(model, vq.KM(k=4))
    assert torch.equal(model[0](value, value, value)[0], expected[0](value, value, value)[0])


@pytest.mark.parametrize(
    ("other", "kind"),
    [
        (Int8WeightOnlyConfig(), "Int8Tensor"),
        (Int8DynamicActivationInt8WeightConfig(), "Int8Tensor"),
        # Int4WeightOnlyConfig of torchao 0.18 has no format for a CPU.
        (IntxWeightOnlyConfig(weight_dtype=torch.int4), "IntxUnpackedToInt8Tensor"),
    ],
)
def test_beside_integers_of_torchao(mlp, other, kind):
    value, expected = torch.randn(8, 64), copy.deepcopy(mlp)
    config = FqnToConfig(
        OrderedDict({"0": VQWeightOnlyConfig(vq.KM(k=256)), "2": other, r"re:3\.\d": None})
    )
    quantize_(mlp, config, filter_fn=None)
    check_converted(mlp, {"0": vq.KM(k=256), "*": None})
    assert isinstance(mlp[0], CodebookLinear)
    assert type(mlp[2].weight).__name__ == kind
    error = (mlp(value) - expected(value)).norm() / expected(value).norm()
    assert error < (0.05 if kind == "Int8Tensor" else 0.15)


def test_one_parameter_alone():
    model = nn.Sequential(nn.GRU(16, 16)).eval()
    expected = vq.compress(model, {"0.weight_hh_l0": vq.KM(k=4)})
    config = FqnToConfig(OrderedDict({"0.weight_hh_l0": VQWeightOnlyConfig(vq.KM(k=4))}))
    quantize_(model, config, filter_fn=None)
    assert list(coded_weights(model)) == list(coded_weights(expected)) == ["0.weight_hh_l0"]
    assert torch.equal(model[0].weight_hh_l0, expected[0].weight_hh_l0)


def test_a_bare_layer_and_one_of_two_names():
    bare = nn.Linear(16, 16)
    quantize_(bare, VQWeightOnlyConfig(PQ))
    assert isinstance(bare, CodebookLinear)

    twice = nn.ModuleDict({"one": nn.Linear(16, 16), "box": nn.ModuleDict()})
    twice["box"]["other"] = twice["one"]
    config = FqnToConfig(OrderedDict({"one": VQWeightOnlyConfig(PQ)}))
    quantize_(twice, config, filter_fn=None)
    assert twice["box"]["other"] is twice["one"]
    check_converted(twice, PQ)
    again = nn.ModuleDict({"one": nn.Linear(16, 16), "box": nn.ModuleDict()})
    again["box"]["other"] = again["one"]
    quantize_(again, VQWeightOnlyConfig(PQ), lambda _, name: name in ("one", "box.other"))
    check_converted(again, PQ)


def test_tied_weights_stay_tied(words, tokens):
    quantize_(words, VQWeightOnlyConfig(PQ), layers)
    assert words.head.codebooks is words.words.codebooks
    size = sum(p.numel() for p in words.parameters())
    words.head.codebooks.data.zero_()
    assert not bool(words.words(tokens[0]).any())
    assert size == sum(p.numel() for p in words.parameters())


def test_what_a_layer_has_beside_its_weight_stays(mlp):
    seen = []
    first, bias = mlp[0], mlp[0].bias
    first.note = "mine"
    first.register_forward_hook(lambda module, *_: seen.append(module))
    quantize_(mlp, VQWeightOnlyConfig(PQ))
    mlp(torch.randn(2, 64))
    assert mlp[0] is first
    assert seen == [first]
    assert first.note == "mine"
    assert first.bias is bias
    assert not first.training


def test_files_and_training_of_the_result(mlp, tmp_path):
    fresh = copy.deepcopy(mlp)
    quantize_(mlp, VQWeightOnlyConfig(PQ))
    vq.save(mlp, tmp_path / "small.vq")
    value = torch.randn(4, 64)
    assert torch.equal(vq.load(tmp_path / "small.vq", fresh)(value), mlp(value))
    mlp(value).square().sum().backward()
    assert mlp[0].codebooks.grad is not None


def test_inference_mode_makes_layers_that_train():
    with torch.inference_mode():
        made_there = nn.Sequential(nn.Linear(16, 16))
    for model in (made_there, nn.Sequential(nn.Linear(16, 16))):
        with torch.inference_mode():
            quantize_(model, VQWeightOnlyConfig(PQ))
        model(torch.randn(2, 16)).sum().backward()
        assert model[0].codebooks.grad is not None


def test_a_layer_of_a_class_of_ones_own_stays_one():
    class Doubled(nn.Linear):
        def forward(self, value: torch.Tensor) -> torch.Tensor:
            return 2 * super().forward(value)

    model, value = nn.Sequential(Doubled(16, 16)), torch.randn(2, 16)
    expected = vq.compress(model, PQ)(value)
    quantize_(model, VQWeightOnlyConfig(PQ))
    assert isinstance(check_converted(model, PQ)[0], Doubled)
    assert torch.equal(model(value), expected)


def test_a_weight_that_changed_is_fitted_again(mlp):
    config, before = VQWeightOnlyConfig(PQ), copy.deepcopy(mlp)
    quantize_(mlp, config)
    with torch.no_grad():
        before[0].weight.neg_()
    expected = vq.compress(before, PQ)
    quantize_(before, config)
    assert torch.equal(before[0].codebooks, expected[0].codebooks)
