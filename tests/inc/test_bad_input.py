"""Every bad input that can reach this host ends in an error that says where and what to do."""

import json
from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import torch
from neural_compressor.torch.quantization import autotune, prepare, quantize
from torch import nn

import vq_plugin as vq
from vq_plugin.inc import KMConfig, PQConfig, RQConfig, VQConfig, load, tuning_config


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("calibrated", [False, True])
def test_nan_or_infinite_weights(mlp, value, calibrated):
    with torch.no_grad():
        mlp[2].weight[3, 5] = value
    calls = []
    run_fn = (lambda m: calls.append(m(torch.randn(4, 32)))) if calibrated else None
    with pytest.raises(ValueError, match=r"layer '2': .* NaN or infinite values, the first at \(3"):
        quantize(mlp, KMConfig(), run_fn=run_fn)
    # Before any work: calibration may take hours.
    assert calls == []
    with pytest.raises(ValueError, match="layer '2'"):
        prepare(mlp, KMConfig())


@pytest.mark.parametrize(
    "make",
    [
        lambda: KMConfig(k=0),
        lambda: PQConfig(k=[16, 0]),
        lambda: RQConfig(k=-1),
        lambda: VQConfig("km(k=0)"),
        lambda: KMConfig.from_dict({"k": 0}),
        lambda: setattr(KMConfig(), "k", 0),
    ],
)
def test_k_below_1(make):
    with pytest.raises(ValueError, match=r"k must be a whole number of at least 1"):
        make()


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"vq_km": {"kk": 4}}, r"vq_km: 'kk' is unknown; did you mean 'k'\?"),
        ({"vq_km": {"global": {"k": 4}, "locals": {}}}, r"'locals' is unknown; did you mean 'loc"),
        ({"vq_pq": {"local": {"0": {"dims": 2}}}}, r"vq_pq: 'dims' is unknown; did you mean 'dim"),
        ({"vq": {"scheme": "pk(k=4)"}}, "scheme 'pk' is unknown"),
        ({"vq_km": None}, "expected a dict of settings"),
        ({"vq_km": {"local": ["fc1"]}}, "'local' is a dict of names"),
        ({"vq_km": {"white_list": None}}, "is for no layer of the model: its white_list is None"),
    ],
)
def test_unknown_keys(mlp, settings, message):
    with pytest.raises((ValueError, TypeError), match=message):
        quantize(mlp, settings)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ('{"k": 4, "k": 8}', r"bad\.json: 'k' is there twice"),
        ('{"kk": 4}', r"bad\.json: vq_km: 'kk' is unknown"),
        ('{"k": 4', r"bad\.json: .*line 1"),
        ("[]", r"bad\.json: KMConfig: expected a dict"),
    ],
)
def test_unknown_or_duplicate_keys_of_files(tmp_path, text, message):
    path = tmp_path / "bad.json"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        KMConfig.from_json_file(path)


def test_unknown_or_duplicate_keys_of_recipes(mlp, tmp_path):
    path = tmp_path / "recipe.yaml"
    path.write_text("version: 1\nmodell: a:b\n")
    with pytest.raises(ValueError, match=r"recipe\.yaml:2"):
        tuning_config(mlp, path)
    with pytest.raises(FileNotFoundError):
        tuning_config(mlp, tmp_path / "none.yaml")


def test_patterns_that_match_nothing(mlp):
    nearest = r"pattern '4' matches nothing; the nearest names are 0, 2, 3"
    with pytest.warns(UserWarning, match=nearest), pytest.raises(ValueError, match=nearest):
        quantize(mlp, KMConfig(white_list=["4"]))
    with pytest.raises(ValueError, match="'4' matches nothing"):
        tuning_config(mlp, [{"4": vq.KM()}])
    with pytest.raises(ValueError, match="'4' matches nothing"):
        tuning_config(mlp, {"4": [vq.KM()]})


@pytest.mark.parametrize("limit", [0, 1, -0.01, 1.5, float("nan"), True, "0.01"])
def test_budgets_outside_0_and_1(mlp, limit):
    with pytest.raises(ValueError, match="a relative budget is a number between 0 and 1"):
        tuning_config(mlp, [vq.KM()], limit)


@pytest.mark.parametrize(
    "nan", [float("nan"), np.float64("nan"), np.float32("nan"), torch.tensor(float("nan"))]
)
@pytest.mark.parametrize("which", ["float model", "compressed model"])
def test_an_evaluate_that_returns_nan(mlp, nan, which):
    calls = []
    good = torch.tensor(0.9) if isinstance(nan, torch.Tensor) else type(nan)(0.9)

    def evaluate(_):
        calls.append(1)
        return nan if which == "float model" or len(calls) > 1 else good

    with pytest.raises(ValueError, match=f"eval_fn returned nan for the {which}"):
        autotune(mlp, tuning_config(mlp, [vq.KM(k=2), vq.KM(k=4)]), evaluate)


@pytest.mark.parametrize("metric", [0.0, -1.5, torch.tensor(0.0)])
def test_a_metric_for_which_a_relative_loss_makes_no_sense(mlp, metric):
    with pytest.raises(ValueError, match="needs a metric above 0 that grows"):
        autotune(mlp, tuning_config(mlp, [vq.KM(k=2)]), lambda m: metric)


def test_settings_that_make_the_model_larger(mlp):
    larger = vq.PQ(k=256, dim=16, codebook_dtype="float32")
    with pytest.warns(UserWarning, match="makes the model no smaller"):
        config = tuning_config(mlp, [larger, vq.KM(k=4), "km(k=4)", {"*": None}])
    assert len(config.config_set) == 2
    with pytest.raises(ValueError, match="no setting makes the model smaller"):
        tuning_config(mlp, {"*": [larger]}, calibration=[torch.randn(4, 32)])


@pytest.mark.parametrize("given", [None, 3, KMConfig()])
def test_candidates_of_the_wrong_type(mlp, given):
    with pytest.raises(TypeError, match="expected a recipe's path, a sequence of schemes"):
        tuning_config(mlp, given)


def test_a_compiled_model(mlp):
    with pytest.raises(ValueError, match="the model is compiled"):
        prepare(torch.compile(mlp), KMConfig())


@pytest.mark.parametrize("name", ["save", "qconfig"])
def test_modules_that_have_the_names_of_inc(name):
    with pytest.raises(ValueError, match=f"the model has a module '{name}'"):
        quantize(nn.ModuleDict({name: nn.Linear(4, 4)}), KMConfig())


def test_a_model_that_is_compressed_already(mlp):
    with pytest.raises(ValueError, match="the model's layers are compressed already"):
        quantize(quantize(mlp, KMConfig()), KMConfig())


@pytest.mark.parametrize(
    "local", [KMConfig(white_list=["0"]), KMConfig().set_local("0", PQConfig())]
)
def test_local_configs_with_rules_of_their_own(local):
    with pytest.raises(ValueError, match="give it one without a white_list"):
        KMConfig().set_local("2", local)
    with pytest.raises(TypeError, match="set_local takes a config"):
        KMConfig().set_local("2", KMConfig() + PQConfig())
    config = KMConfig()
    with pytest.raises(ValueError, match="give it one without"):
        config.set_local("0", config)


def test_corrupt_and_truncated_files(mlp, tmp_path):
    from neural_compressor.torch.quantization import save

    save(quantize(mlp, KMConfig(), inplace=False), tmp_path)
    path = Path(tmp_path, "model.vq")
    data = path.read_bytes()
    for damaged in (data[: len(data) // 2], data[:-9] + b"x" * 9, b""):
        path.write_bytes(damaged)
        with pytest.raises(vq.CheckpointError, match=r"model\.vq"):
            load(tmp_path, mlp)


def test_files_that_name_layers_the_model_lacks(mlp, tmp_path):
    from neural_compressor.torch.quantization import save

    save(quantize(mlp, KMConfig(), inplace=False), tmp_path)
    with pytest.raises(vq.CheckpointError, match="the model has no layer '2'"):
        load(tmp_path, nn.Sequential(nn.Linear(32, 64)))


def test_k_above_the_number_of_distinct_sub_vectors_is_reduced_and_shown():
    small = quantize(nn.Sequential(nn.Linear(4, 4)), PQConfig(k=256))
    assert "k 256 -> 4" in str(vq.summary(small))


def test_the_input_model_stays_unless_asked(mlp):
    before = json.dumps([type(m).__name__ for m in mlp.modules()])
    quantize(mlp, KMConfig(), run_fn=lambda m: m(torch.randn(2, 32)), inplace=False)
    prepare(mlp, KMConfig(), inplace=False)
    budget = vq.LossBudget(relative=0.01, min_agreement=None)
    autotune(mlp, tuning_config(mlp, [vq.KM()], budget), lambda m: 1.0)
    assert json.dumps([type(m).__name__ for m in mlp.modules()]) == before
    assert not any(m._forward_pre_hooks for m in mlp.modules())


@pytest.mark.parametrize(
    "make",
    [
        lambda: VQConfig(16),
        lambda: KMConfig(white_list="fc1"),
        lambda: KMConfig(white_list=[7]),
        lambda: KMConfig(seed="1"),
        lambda: KMConfig().set_local(7, None),
        lambda: KMConfig().set_local("fc1", vq.KM()),
        lambda: KMConfig().set_local(torch.relu, KMConfig()),
    ],
)
def test_values_of_the_wrong_type(make):
    with pytest.raises(TypeError, match=r"got (16|'fc1'|7|'1'|KM\(k=16\)|<built-in method relu)"):
        make()


@pytest.mark.parametrize(
    "make", [lambda: KMConfig(white_list=[]), lambda: KMConfig(k=[]), lambda: VQConfig([])]
)
def test_empty_lists(make):
    with pytest.raises(ValueError, match="empty"):
        make()


def test_lists_where_one_value_is_wanted(mlp):
    with pytest.raises(ValueError, match=r"KMConfig: k=\[4, 16\] is a list, which autotune tries"):
        quantize(mlp, KMConfig(k=[4, 16]))


def test_calibration_that_does_not_reach_a_layer(net, tokens):
    with pytest.raises(ValueError, match="layer 'embed': calibration never ran it"):
        quantize(net, KMConfig(), run_fn=lambda m: m.out(torch.randn(2, 24)))


def test_calibration_with_nan(mlp):
    with pytest.raises(ValueError, match="layer '0': calibration gave it NaN"):
        quantize(mlp, KMConfig(), run_fn=lambda m: m(torch.full((2, 32), float("nan"))))


def test_lazy_layers():
    with pytest.raises(ValueError, match="layer '0' is lazy and has no weight yet"):
        quantize(nn.Sequential(nn.LazyLinear(4)), KMConfig())


def test_an_empty_layer():
    with pytest.raises(ValueError, match=r"layer '0': the weight of shape \(4, 0\) is empty"):
        quantize(nn.Sequential(nn.Linear(0, 4)), KMConfig())
