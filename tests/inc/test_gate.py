"""A ruined model is not what INC's ``autotune`` returns, whatever its metric says."""

import pytest

pytest.importorskip("neural_compressor", reason="Intel Neural Compressor is not installed")

from decimal import Decimal

import torch
from neural_compressor.torch.quantization import autotune
from torch.nn import functional

import vq_plugin as vq
from tests.tuning.networks import dense_net
from vq_plugin.inc import tuning_config
from vq_plugin.nn import CodebookLayer

SCALE = 64


@pytest.fixture
def net():
    return dense_net(torch.Generator().manual_seed(0)).eval()


@pytest.fixture
def inputs():
    return torch.randn(500, 24, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def labels(net, inputs):
    with torch.no_grad():
        labels = net(inputs).argmax(1)
    labels[::5] = (labels[::5] + 1) % 5
    return labels


def compressed(model):
    return any(isinstance(layer, CodebookLayer) for layer in model.modules())


@pytest.mark.parametrize("k", [1, 6, 10])
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_metric_the_wrong_way_round_is_an_error(net, inputs, labels, k, calibrated):
    def cross_entropy(model):
        with torch.no_grad():
            return functional.cross_entropy(model(inputs) / SCALE, labels).item()

    ladder = {"*": [vq.KM(k=k), vq.KM(k=16)]} if calibrated else [vq.KM(k=k), vq.KM(k=16)]
    batches = [inputs[:100]] if calibrated else None
    config = tuning_config(net, ladder, 0.005, calibration=batches)
    with pytest.raises(ValueError, match="INC takes metrics that grow"):
        autotune(net, config, cross_entropy)


def test_a_metric_that_changes_by_itself_is_an_error(net, inputs, labels):
    generator = torch.Generator().manual_seed(0)

    def evaluate(model):
        some = torch.randint(500, (50,), generator=generator)
        return (model(inputs)[some].argmax(1) == labels[some]).double().mean().item()

    with pytest.raises(ValueError, match=r"eval_fn of the float model is .* a loss cannot be told"):
        autotune(net, tuning_config(net, [vq.KM(k=64)]), evaluate)


@pytest.mark.parametrize(
    "kind",
    [
        lambda y: y,
        lambda y: y.argmax(1),
        lambda y: y.numpy(),
        lambda y: y.tolist(),
        lambda y: "0.9",
    ],
)
def test_classes_and_logits_are_no_metric(net, inputs, kind):
    def evaluate(model):
        with torch.no_grad():
            return kind(model(inputs))

    with pytest.raises(ValueError, match=r"eval_fn returned .* it must return a number"):
        autotune(net, tuning_config(net, [vq.KM(k=64)]), evaluate)


def test_a_metric_that_sees_nothing_is_an_error(net, inputs):
    config = tuning_config(net, {"*": [vq.KM(k=1)]}, calibration=[inputs[:100]])
    with pytest.raises(ValueError, match="eval_fn does not see what compression has done"):
        autotune(net, config, lambda _: 1.0)


@pytest.mark.parametrize(
    ("kind", "said"), [(Decimal, "must return a number"), (int, "does not see what compression")]
)
def test_numbers_that_compare_by_themselves_are_looked_at_too(net, inputs, kind, said):
    config = tuning_config(net, {"*": [vq.KM(k=1)]}, calibration=[inputs[:100]])
    with pytest.raises(ValueError, match=said):
        autotune(net, config, lambda _: kind("1"))


@pytest.mark.parametrize("calibrated", [True, False])
def test_a_metric_that_sees_no_ruin_is_an_error(net, inputs, calibrated):
    """Unless outputs agree, or nobody asks for it."""
    batches = [inputs[:100]] if calibrated else None

    def of_another_model(_):
        return net(inputs).detach().softmax(1).amax(1).mean().item()

    def ladder(k):
        return {"*": [vq.KM(k=k)]} if calibrated else [vq.KM(k=k)]

    for metric in (lambda _: 1.0, of_another_model):
        config = tuning_config(net, ladder(4), calibration=batches)
        with pytest.raises(ValueError, match="by eval_fn models that were ruined on purpose"):
            autotune(net, config, metric)
        budget = vq.LossBudget(relative=0.01, min_agreement=None)
        config = tuning_config(net, ladder(4), budget, calibration=batches)
        assert compressed(autotune(net, config, metric))
    if calibrated:
        config = tuning_config(net, ladder(64), calibration=batches)
        assert compressed(autotune(net, config, lambda _: 1.0))


def test_honest_gains_are_none(net, inputs, labels):
    """A model may gain on other labels, and an equal config serves again."""

    def accuracy(model):
        with torch.no_grad():
            right = (model(inputs).argmax(1) == labels).double().mean().item()
        return right + 0.1 * compressed(model)

    config = tuning_config(net, [vq.KM(k=64)])
    for _ in range(2):
        assert compressed(autotune(net, config, accuracy))


def test_nothing_is_evaluated_more_than_the_float_model_where_nothing_is_suspicious(
    net, inputs, labels
):
    calls = []

    def accuracy(model):
        calls.append(compressed(model))
        with torch.no_grad():
            return (model(inputs).argmax(1) == labels).double().mean().item()

    ladder = {"*": [vq.KM(k=64), vq.KM(k=128)]}
    autotune(net, tuning_config(net, ladder, 0.05, calibration=[inputs[:100]]), accuracy)
    assert calls == [False, True, False]
    # Nothing shows that outputs agree: one that is ruined must not pass.
    calls.clear()
    autotune(net, tuning_config(net, [vq.KM(k=64), vq.KM(k=128)], 0.05), accuracy)
    assert calls == [False, True, False, False]
