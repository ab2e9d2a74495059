"""``step="prepare"``, data, ``step="convert"``: calibration, and training with codebooks."""

import copy

import pytest
import torch
from torch import nn
from torchao.quantization import quantize_

import vq_plugin as vq
from vq_plugin.torchao import VQWeightOnlyConfig, check_converted

PQ = vq.PQ(k=8, dim=4)


def layers(module: nn.Module, name: str) -> bool:
    return isinstance(module, nn.Linear | nn.Conv1d | nn.Embedding | nn.LSTM)


def step(model, which, scheme=PQ):
    quantize_(model, VQWeightOnlyConfig(scheme, step=which), layers)
    return model


def test_calibrated_fits_are_those_of_compress(words, tokens, assert_same):
    expected, reference = vq.compress(words, PQ, tokens), words(tokens[0])
    step(words, "prepare")
    with torch.no_grad():
        assert torch.equal(words(tokens[0]), reference)
        for batch in tokens[1:]:
            words(batch)
    step(words, "convert")
    assert_same(check_converted(words, PQ), expected, tokens[0])
    assert words.head.codebooks is words.words.codebooks
    assert not any("input_stats" in key for key in words.state_dict())
    assert not any(len(module._forward_pre_hooks) for module in words.modules())


def test_a_recurrent_layer_calibrates(assert_same):
    torch.manual_seed(0)
    model = nn.Sequential(nn.LSTM(16, 16)).eval()
    batches = [torch.randn(6, 3, 16) for _ in range(3)]
    expected = vq.compress(model, PQ, batches)
    step(model, "prepare")
    with torch.no_grad():
        for batch in batches:
            model(batch)
    step(model, "convert")
    for name in ("weight_ih_l0", "weight_hh_l0", "bias_ih_l0"):
        assert torch.equal(getattr(model[0], name), getattr(expected[0], name)), name


@pytest.mark.parametrize("how", ["weight_norm", "pruned"])
def test_a_computed_weight_calibrates(how):
    torch.manual_seed(0)
    layer = nn.Linear(16, 16)
    if how == "weight_norm":
        layer = nn.utils.parametrizations.weight_norm(layer)
    else:
        layer = nn.utils.prune.l1_unstructured(layer, "weight", 0.5)
    model, batch = nn.Sequential(layer).eval(), torch.randn(40, 16)
    expected = vq.compress(model, PQ, [batch])
    step(model, "prepare")
    with torch.no_grad():
        model(batch)
    step(model, "convert")
    assert torch.equal(model[0].codes, expected[0].codes)
    assert torch.equal(model(batch), expected(batch))


def test_training_ends_at_what_the_prepared_model_computes(words, tokens):
    target = torch.randn(6, 48)
    untrained = vq.compress(words, PQ)
    step(words.train(), "prepare")
    optimizer = torch.optim.SGD(words.parameters(), lr=0.2)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = (words(tokens[0]) - target).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    words.eval()
    with torch.no_grad():
        prepared = words(tokens[0])
    step(words, "convert")
    check_converted(words, PQ)
    assert torch.allclose(words(tokens[0]), prepared, atol=1e-5)
    assert losses[-1] < 0.8 * losses[0]
    assert not torch.equal(words.again.codes, untrained.again.codes)
    assert words.head.codebooks is words.words.codebooks


def test_calibration_counts_in_training(words, tokens):
    calibrated, plain = copy.deepcopy(words), words
    for model in (calibrated, plain):
        step(model, "prepare")
    with torch.no_grad():
        for batch in tokens:
            calibrated(batch)
    for model in (calibrated, plain):
        with torch.no_grad():
            model.train()(tokens[0])
    codes = [each.again.parametrizations.weight[0].codes for each in (calibrated, plain)]
    assert not torch.equal(*codes)


def test_a_prepared_model_is_copied_and_loaded(words, tokens):
    step(words, "prepare")
    fresh = copy.deepcopy(words)
    with torch.no_grad():
        for batch in tokens:
            words(batch)
    copied = copy.deepcopy(words)
    fresh.load_state_dict(words.state_dict())
    results = [step(model, "convert")(tokens[0]) for model in (words, copied, fresh)]
    assert torch.equal(results[0], results[1])
    assert torch.equal(results[0], results[2])


@pytest.mark.parametrize(
    ("first", "second", "scheme", "message"),
    [
        ("prepare", "prepare", PQ, "is prepared already"),
        ("prepare", None, PQ, "is prepared: quantize_ with step='convert'"),
        ("prepare", "convert", vq.KM(k=4), r"was prepared for pq\(k=8,dim=4\), not for km\(k=4\)"),
        ("prepare", "convert", PQ, "saw no data"),
    ],
)
def test_steps_in_another_order(words, first, second, scheme, message):
    step(words, first)
    before = copy.deepcopy(words.state_dict())
    with pytest.raises(ValueError, match=message):
        step(words, second, scheme)
    after = words.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(before[key], after[key]) for key in before)
