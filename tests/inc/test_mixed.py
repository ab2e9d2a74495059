"""Codebooks on some layers, INC's own algorithms on others."""

import copy

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import torch
from neural_compressor.common.base_config import ComposableConfig
from neural_compressor.torch.algorithms.weight_only.modules import INCWeightOnlyLinear
from neural_compressor.torch.quantization import (
    AutoRoundConfig,
    DynamicQuantConfig,
    FP8Config,
    HQQConfig,
    MXQuantConfig,
    RTNConfig,
    SmoothQuantConfig,
    TEQConfig,
    TuningConfig,
    autotune,
    convert,
    load,
    prepare,
    quantize,
    save,
)
from torch import nn

from vq_plugin.inc import KMConfig, PQConfig, VQConfig
from vq_plugin.nn import CodebookLinear


def rtn(**settings):
    # INC's default loads layers from files, which needs another package.
    return RTNConfig(use_layer_wise=False, **settings)


def kinds(model):
    return [type(layer).__name__ for layer in model if not isinstance(layer, nn.ReLU)]


BOTH = ["CodebookLinear", "INCWeightOnlyLinear", "CodebookLinear"]


@pytest.mark.parametrize(
    "config",
    [
        lambda: KMConfig().set_local("2", rtn()),
        lambda: rtn().set_local("0", KMConfig()).set_local("3", KMConfig()),
        lambda: KMConfig(white_list=["0", "3"]) + rtn(white_list=["2"]),
        lambda: KMConfig() + rtn(white_list=["2"]),
        lambda: KMConfig(white_list=["0", "3"]) + rtn(),
        lambda: KMConfig(white_list=["0"]) + rtn(white_list=["2"]) + PQConfig(white_list=["3"]),
        lambda: {"vq_km": {"local": {"2": {"rtn": {"use_layer_wise": False}}}}},
    ],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_ways_to_mix(mlp, config, stages):
    small = quantize(mlp, config()) if stages == 1 else convert(prepare(mlp, config()))
    assert kinds(small) == BOTH


def test_each_part_is_what_it_is_alone(mlp, assert_same):
    x = torch.randn(4, 32)
    both = quantize(copy.deepcopy(mlp), KMConfig(k=4) + rtn(white_list=["2"]))
    ours = quantize(copy.deepcopy(mlp), KMConfig(k=4, white_list=["0", "3"]))
    theirs = quantize(copy.deepcopy(mlp), rtn(white_list=["2"]))
    for name in ("0", "3"):
        assert torch.equal(both[int(name)].weight, ours[int(name)].weight)
    ours[2] = theirs[2]
    assert_same(both, ours, x)


@pytest.mark.parametrize(
    "theirs",
    [
        HQQConfig(white_list=["2"]),
        TEQConfig(use_layer_wise=False, white_list=["2"]),
    ],
    ids=lambda config: config.name,
)
def test_other_weight_only_algorithms(mlp, theirs):
    config = PQConfig(white_list=["0", "3"]) + theirs
    small = quantize(mlp, config, example_inputs=torch.ones(1, 32))
    assert kinds(small)[::2] == ["CodebookLinear"] * 2
    assert kinds(small)[1] in ("HQQLinear", "INCWeightOnlyLinear")


def test_calibrated_beside_another_algorithm(mlp):
    x = torch.randn(64, 32)
    config = PQConfig(white_list=["0"]) + rtn(white_list=["2"])
    small = quantize(copy.deepcopy(mlp), config, run_fn=lambda m: m(x))
    alone = quantize(copy.deepcopy(mlp), PQConfig(white_list=["0"]), run_fn=lambda m: m(x))
    assert torch.equal(small[0].weight, alone[0].weight)


def test_autotune_over_compositions(mlp):
    # The lists of a white-listed config of INC stay lists.
    config = KMConfig(k=[2, 16], white_list=["0"]) + rtn(bits=8, white_list=["2"])
    seen = []

    def evaluate(model):
        if isinstance(model[0], CodebookLinear):
            seen.append((model[0].scheme.k, model[2].bits))
        return float(seen[-1:] in ([], [(16, 8)]))

    autotune(mlp, TuningConfig(config_set=[config], tolerable_loss=0.1), evaluate)
    assert seen == [(2, 8), (16, 8)]


def test_names_go_before_all_and_the_later_before_the_earlier(mlp, schemes):
    config = PQConfig() + KMConfig(k=2) + KMConfig(k=4, white_list=["2"])
    assert schemes(quantize(mlp, config)) == {"0": "km(k=2)", "2": "km(k=4)", "3": "km(k=2)"}


@pytest.mark.parametrize(
    "codebooks",
    [KMConfig(), KMConfig(white_list=["0"]), KMConfig(white_list=[nn.Linear])],
    ids=["all", "name", "type"],
)
def test_codebooks_on_the_right_of_inc_are_an_error(mlp, codebooks):
    # INC drops what RTN says of all layers, or the first of two configs of one class.
    with pytest.raises(ValueError, match=r"write KMConfig\(…\) \+ other"):
        quantize(mlp, rtn() + codebooks)


def test_names_are_exact_on_both_sides_of_a_sum():
    model = nn.ModuleDict({"fc1": nn.Linear(32, 32), "fc10": nn.Linear(32, 32)})
    both = quantize(copy.deepcopy(model), KMConfig() + rtn(white_list=["fc1"]))
    assert kinds(both.values()) == ["INCWeightOnlyLinear", "CodebookLinear"]
    one = quantize(model, KMConfig(white_list=["fc10"]) + rtn(white_list=["fc1"]))
    assert kinds(one.values()) == ["INCWeightOnlyLinear", "CodebookLinear"]


def test_two_configs_of_one_class_in_a_sum(mlp, schemes):
    config = KMConfig(k=2, white_list=["0"]) + KMConfig(k=4, white_list=["2"]) + rtn()
    small = quantize(mlp, config)
    assert schemes(small) == {"0": "km(k=2)", "2": "km(k=4)"}
    assert kinds(small)[2] == "INCWeightOnlyLinear"


def test_layers_that_an_algorithm_of_inc_does_not_take():
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Flatten(), nn.Linear(16, 4))
    with pytest.raises(ValueError, match="layer '0': RTNConfig does not take a Conv2d"):
        quantize(model, KMConfig().set_local("0", rtn()))
    with pytest.warns(UserWarning, match="RTNConfig: '0' matches no layer that it takes"):
        quantize(model, KMConfig() + rtn(white_list=["0"]))


def test_a_dict_of_two_algorithms_is_an_error(mlp):
    with pytest.raises(ValueError, match="reads the first one twice and drops the others"):
        quantize(mlp, {"vq_km": {"k": 4}, "rtn": {}})


@pytest.mark.parametrize(
    "other",
    [AutoRoundConfig(), MXQuantConfig(), FP8Config(), SmoothQuantConfig(), DynamicQuantConfig()],
)
def test_what_cannot_share_a_model_says_so(mlp, other):
    with pytest.raises(ValueError, match="cannot share a model with codebooks"):
        KMConfig() + other
    with pytest.raises(ValueError, match="cannot share a model with codebooks"):
        KMConfig().set_local("0", other)
    mixed = MXQuantConfig(white_list=["2"]).set_local("0", KMConfig())
    with pytest.raises(AttributeError, match="codebooks share a model with its weight-only"):
        quantize(mlp, mixed)


def test_one_after_the_other(mlp):
    small = quantize(mlp, rtn(white_list=["2"]))
    small = quantize(small, KMConfig())
    assert kinds(small) == BOTH
    assert {config.name for config in small.qconfig.values()} == {"vq_km", "rtn"}


def test_left_and_composed(mlp, tmp_path):
    small = quantize(mlp, VQConfig(None) + rtn(white_list=["2"]), inplace=False)
    assert kinds(small) == ["Linear", "INCWeightOnlyLinear", "Linear"]
    # Without codebooks the model is INC's to save and load.
    x = torch.randn(4, 32)
    save(small, str(tmp_path))
    again = load(str(tmp_path), original_model=mlp)
    assert isinstance(again[2], INCWeightOnlyLinear)
    assert torch.equal(again(x), small(x))


def test_a_failure_comes_before_any_algorithm(mlp):
    with torch.no_grad():
        mlp[3].weight[0, 0] = float("nan")
    with pytest.raises(ValueError, match="layer '3'"):
        quantize(mlp, KMConfig().set_local("2", rtn()))
    assert kinds(mlp) == ["Linear"] * 3


def test_tied_weights_of_two_algorithms():
    model = nn.Sequential(nn.Embedding(8, 4), nn.Linear(4, 8, bias=False))
    model[1].weight = model[0].weight
    with pytest.raises(ValueError, match="share one weight"):
        quantize(model, KMConfig().set_local("1", rtn()))


def test_compositions_are_ours_where_codebooks_are_on_the_left():
    assert type(KMConfig() + rtn()).__module__.startswith("vq_plugin")
    assert type(rtn() + KMConfig()) is ComposableConfig


class WithHead(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc, self.lm_head = nn.Linear(32, 32), nn.Linear(32, 32)


@pytest.mark.parametrize(
    ("config", "fc", "head"),
    [
        # INC leaves the heads of language models in float wherever it is asked for all layers.
        (lambda: KMConfig() + rtn(), "INCWeightOnlyLinear", "Linear"),
        (lambda: KMConfig() + rtn(white_list=["fc"]), "INCWeightOnlyLinear", "CodebookLinear"),
        (lambda: KMConfig(white_list=["lm_head"]) + rtn(), "INCWeightOnlyLinear", "CodebookLinear"),
    ],
)
@pytest.mark.parametrize("stages", [1, 2])
def test_heads_of_language_models(config, fc, head, stages):
    model = WithHead()
    small = quantize(model, config()) if stages == 1 else convert(prepare(model, config()))
    assert kinds(small.children()) == [fc, head]


def test_a_config_that_inc_has_used(mlp):
    used = rtn()
    quantize(nn.Sequential(nn.Linear(4, 4)), used)
    assert used.local_config
    assert kinds(quantize(mlp, KMConfig().set_local("2", used))) == BOTH


def test_a_local_config_of_inc_with_rules_of_its_own(mlp):
    with pytest.raises(ValueError, match="give it one without a white_list"):
        KMConfig().set_local("2", rtn(white_list=["2"]))


def test_sums_of_sums(mlp, schemes):
    config = KMConfig() + (PQConfig(white_list=["0"]) + rtn(white_list=["2"]))
    assert kinds(quantize(mlp, config)) == BOTH
    assert schemes(mlp) == {"0": "pq(k=16,dim=4)", "3": "km(k=16)"}
