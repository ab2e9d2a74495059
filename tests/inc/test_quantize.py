"""INC's entry points give what ``compress`` gives."""

import copy

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

import torch
from neural_compressor.torch.quantization import TuningConfig, autotune, convert, prepare, quantize
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.inc import KMConfig, PQConfig, RQConfig, VQConfig
from vq_plugin.nn import CodebookLinear

CONFIGS = [
    (lambda: VQConfig("binary(scale=row)"), vq.Binary(scale="row")),
    (lambda: VQConfig(vq.KM(k=8, group=4)), vq.KM(k=8, group=4)),
    (lambda: KMConfig(k=4), vq.KM(k=4)),
    (lambda: PQConfig(k=8, dim=2, axis="out"), vq.PQ(k=8, dim=2, axis="out")),
    (lambda: RQConfig(k=4, stages=2, dim=4), vq.RQ(k=4, stages=2, dim=4)),
]


@pytest.mark.parametrize(("config", "scheme"), CONFIGS)
@pytest.mark.parametrize("calibrated", [False, True])
def test_quantize_is_compress(net, tokens, assert_same, config, scheme, calibrated):
    expected = vq.compress(net, scheme, [tokens] if calibrated else None)
    run_fn = (lambda model: model(tokens)) if calibrated else None
    small = quantize(copy.deepcopy(net), config(), run_fn=run_fn)
    assert_same(small, expected, tokens)


@pytest.mark.parametrize(("config", "scheme"), CONFIGS)
@pytest.mark.parametrize("inplace", [False, True])
def test_prepare_and_convert_are_compress(net, tokens, assert_same, config, scheme, inplace):
    expected = vq.compress(net, scheme, [tokens])
    before = copy.deepcopy(net.state_dict())
    prepared = prepare(net, config(), inplace=inplace)
    assert (prepared is net) == inplace
    prepared(tokens)
    small = convert(prepared, inplace=inplace)
    assert (small is net) == inplace
    assert_same(small, expected, tokens)
    if not inplace:
        assert net.state_dict().keys() == before.keys()
        assert not any(net._modules[name]._forward_pre_hooks for name in net._modules)


def test_prepare_without_calibration_counts_all_errors_alike(net, tokens, assert_same):
    small = convert(prepare(copy.deepcopy(net), KMConfig(k=4)))
    assert_same(small, vq.compress(net, vq.KM(k=4)), tokens)


def test_convert_alone(net, tokens, assert_same):
    small = convert(copy.deepcopy(net), KMConfig(k=4))
    assert_same(small, vq.compress(net, vq.KM(k=4)), tokens)


@pytest.mark.parametrize(
    ("settings", "scheme"),
    [
        ({"vq": {"scheme": "pq(k=8,dim=2)"}}, vq.PQ(k=8, dim=2)),
        ({"vq_km": {"k": 8}}, vq.KM(k=8)),
        ({"vq_pq": {"k": 8, "dim": 2}}, vq.PQ(k=8, dim=2)),
        ({"vq_rq": {"k": 8, "stages": 3, "dim": 8}}, vq.RQ(k=8, stages=3, dim=8)),
    ],
)
def test_plain_dicts(net, tokens, assert_same, settings, scheme):
    assert_same(quantize(copy.deepcopy(net), settings), vq.compress(net, scheme), tokens)


def test_dict_with_global_and_local(net, schemes):
    small = quantize(
        net,
        {
            "vq_km": {
                "global": {"k": 4},
                "local": {
                    "fc1": {"k": 8},
                    "Conv2d": {"k": 2},
                    "conv[13]d": None,
                    "out": {"vq_pq": {"k": 8, "dim": 2}},
                },
            }
        },
    )
    assert schemes(small) == {
        "embed": "km(k=4)",
        "conv2d": "km(k=2)",
        "fc1": "km(k=8)",
        "fc10": "km(k=4)",
        "out": "pq(k=8,dim=2)",
    }


def test_in_place_changes_the_model_itself_and_a_copy_does_not(net, tokens):
    copied = quantize(net, KMConfig(k=4), inplace=False)
    assert type(net.fc1) is nn.Linear
    assert type(copied.fc1) is CodebookLinear
    assert quantize(net, KMConfig(k=4)) is net
    assert type(net.fc1) is CodebookLinear


def test_calibration_gets_its_arguments_and_may_use_gradients(net, tokens, assert_same):
    labels = torch.zeros(len(tokens), dtype=torch.long)
    seen = []

    def run_fn(model, batch, target):
        loss = functional.cross_entropy(model(batch), target)
        loss.backward()
        seen.append(float(model.fc1.weight.grad.abs().sum()))

    small = quantize(copy.deepcopy(net), PQConfig(), run_fn=run_fn, run_args=(tokens, labels))
    assert len(seen) == 1
    assert seen[0] > 0
    assert_same(small, vq.compress(net, vq.PQ(), [tokens]), tokens)


def test_calibration_runs_once_for_several_methods(net, tokens):
    calls = []

    def run_fn(model):
        calls.append(model(tokens))

    config = KMConfig(k=4).set_local("fc1", PQConfig()).set_local("fc10", RQConfig(k=4, dim=4))
    quantize(net, config, run_fn=run_fn)
    assert len(calls) == 1


def test_a_failing_calibration_leaves_the_model_as_it_was(net, tokens):
    before = net.state_dict().keys()

    def run_fn(model):
        raise RuntimeError("no data")

    with pytest.raises(RuntimeError, match="no data"):
        quantize(net, KMConfig(), run_fn=run_fn)
    assert net.state_dict().keys() == before
    assert not net.fc1._forward_pre_hooks


def test_a_failing_fit_leaves_the_model_as_it_was(net):
    net.out.weight.data.mul_(1e9)
    with pytest.raises(ValueError, match="layer 'out'"):
        quantize(net, KMConfig())
    assert type(net.fc1) is nn.Linear


def test_a_failing_convert_keeps_the_calibration(net, tokens, assert_same):
    expected = vq.compress(net, vq.KM(k=4), [tokens])
    net.unused = nn.Linear(4, 4)
    prepared = prepare(net, KMConfig(k=4))
    prepared(tokens)
    with pytest.raises(ValueError, match="layer 'unused': calibration never ran it"):
        convert(prepared)
    del prepared.unused
    assert_same(convert(prepared), expected, tokens)


def test_no_observer_stays_behind(mlp):
    for second in (lambda m, c: convert(prepare(m, c)), quantize):
        model = prepare(copy.deepcopy(mlp), KMConfig())
        small = second(model, KMConfig(white_list=["0"]))
        assert not any("input_stats" in key for key in small.state_dict())
        assert not any(module._forward_pre_hooks for module in small.modules())


def test_statistics_survive_copies_and_state_dicts(mlp, assert_same):
    x = torch.randn(16, 32)
    prepared = prepare(mlp, PQConfig(), inplace=False)
    prepared(x)
    other = prepare(mlp, PQConfig(), inplace=False)
    other.load_state_dict(prepared.state_dict())
    expected = vq.compress(mlp, vq.PQ(), [x])
    for calibrated in (copy.deepcopy(prepared), other):
        assert_same(convert(calibrated), expected, x)


@pytest.mark.parametrize("earlier", [None, "a text"])
def test_an_attribute_of_the_name_qconfig(mlp, earlier):
    mlp.qconfig = earlier
    assert {c.name for c in quantize(mlp, KMConfig()).qconfig.values()} == {"vq_km"}


def test_tied_weights_stay_tied(tokens):
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.head = nn.Embedding(20, 16), nn.Linear(16, 20, bias=False)
            self.head.weight = self.embed.weight

        def forward(self, x):
            return self.head(self.embed(x))

    model = Tied()
    small = quantize(model, KMConfig(k=4), run_fn=lambda m: m(tokens))
    assert small.embed.codebooks is small.head.codebooks
    assert torch.equal(small.embed.codes, small.head.codes)
    with pytest.raises(ValueError, match=r"'embed' and 'head' share one weight"):
        quantize(Tied(), KMConfig(white_list=["embed"]))


def test_a_module_with_two_names_is_replaced_under_both(assert_same):
    shared = nn.Linear(16, 16)
    model = nn.Sequential(shared, nn.ReLU(), shared)
    x = torch.randn(4, 16)
    expected = vq.compress(model, vq.KM(k=4), [x])
    small = quantize(model, KMConfig(k=4), run_fn=lambda m: m(x))
    assert small[0] is small[2]
    assert_same(small, expected, x)


@pytest.mark.parametrize("calibrated", [False, True])
def test_a_bare_layer(assert_same, calibrated):
    x = torch.randn(64, 32)
    layer = nn.Linear(32, 16)
    expected = vq.compress(layer, vq.PQ(), [x] if calibrated else None)
    run_fn = (lambda model: model(x)) if calibrated else None
    assert_same(quantize(copy.deepcopy(layer), PQConfig(), run_fn=run_fn), expected, x)
    prepared = prepare(layer, PQConfig(), inplace=False)
    if calibrated:
        prepared(x)
    assert_same(convert(prepared, inplace=False), expected, x)


def test_half_precision_stays(mlp):
    small = quantize(mlp.half(), KMConfig(k=4))
    assert small[0].weight.dtype == torch.float16


def test_hooks_and_training_mode_stay(mlp):
    calls = []
    mlp[0].register_forward_hook(lambda *_: calls.append(1))
    mlp.train()
    small = quantize(mlp, KMConfig(k=4), run_fn=lambda m: m(torch.randn(4, 32)))
    assert small[0].training
    calls.clear()
    small(torch.randn(4, 32))
    assert calls == [1]
    assert not small[0]._forward_pre_hooks


def test_autotune_tries_the_values_of_lists(mlp, schemes):
    seen = []

    def evaluate(model):
        seen.append(schemes(model).get("0"))
        return 1.0 if seen[-1] in (None, "pq(k=64,dim=2)") else 0.0

    config = PQConfig(k=[4, 64], dim=[4, 2])
    best = autotune(mlp, TuningConfig(config_set=[config], tolerable_loss=0.01), evaluate)
    assert seen[1:] == [
        "pq(k=4,dim=4)",
        "pq(k=4,dim=2)",
        "pq(k=64,dim=4)",
        "pq(k=64,dim=2)",
    ]
    assert schemes(best)["0"] == "pq(k=64,dim=2)"


def test_the_summary_is_in_the_log(net, caplog):
    import logging

    logger = logging.getLogger("neural_compressor")
    logger.setLevel(logging.INFO)
    logger.propagate = True
    try:
        quantize(net, KMConfig(k=300))
    finally:
        logger.propagate = False
    assert "layer rate" in caplog.text
    assert "k 300 ->" in caplog.text
