"""``tune(host=)``: the budget is decided on what a host makes of the model."""

import copy
import pickle
import sys
from collections import OrderedDict

import pytest

pytest.importorskip("torchao")

import torch
from torch import nn
from torch.ao.quantization.quantize_fx import convert_fx, prepare_fx
from torch.fx import GraphModule
from torchao.quantization import FqnToConfig, quantize_
from torchao.quantization.pt2e.quantize_pt2e import convert_pt2e, prepare_pt2e

import vq_plugin as vq
from vq_plugin import torch_ao
from vq_plugin.nn import CodebookLayer, coded_weights
from vq_plugin.torchao import PT2E, VQQuantizer, VQWeightOnlyConfig, fused_float
from vq_plugin.tuning.shipped import Shipped

HOSTS = ["torchao", "pt2e", "torch_ao"]
LADDER = [vq.KM(k=2), vq.KM(k=4), vq.PQ(k=8, dim=4), vq.KM(k=16), vq.KM(k=64)]
BUDGET = vq.LossBudget(absolute=0.1)


class Convolutions(nn.Module):
    """With batch norm, and a layer that is called twice."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 8, 3, bias=False)
        self.norm = nn.BatchNorm2d(8)
        self.again = nn.Linear(8, 8)
        self.head = nn.Linear(8, 5)
        nn.init.normal_(self.norm.running_mean)
        nn.init.uniform_(self.norm.running_var, 0.5, 2.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.first(images)).relu().mean((2, 3))
        return self.head(self.again(self.again(hidden).relu()))


@pytest.fixture
def model() -> Convolutions:
    torch.manual_seed(0)
    return Convolutions().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(300, 1, 6, 6, generator=torch.Generator().manual_seed(1))


@pytest.fixture
def evaluate(model, images):
    """How much of the outputs' variance is explained; ``seen`` has all that it was given."""
    expected = model(images).detach()
    seen: list[nn.Module] = []

    def explained(small: nn.Module) -> float:
        seen.append(small)
        # As everybody begins; a graph has no modes.
        assert small.eval() is small
        with torch.no_grad():
            return 1 - ((small(images) - expected).var() / expected.var()).item()

    explained.seen = seen
    return explained


def by_hand(host: str, model: nn.Module, schemes, batch: torch.Tensor) -> nn.Module:
    """The host's own calls, calibrated, as the documentation shows them."""
    if host == "torchao":
        small = copy.deepcopy(model)
        for step in ("prepare", "convert"):
            configs = {name: VQWeightOnlyConfig(s, step=step) for name, s in schemes.items() if s}
            quantize_(small, FqnToConfig(OrderedDict(configs)), filter_fn=None)
            if step == "prepare":
                small(batch)
        return small
    if host == "pt2e":
        program = torch.export.export(model, (batch,))
        prepared = prepare_pt2e(program.module(), VQQuantizer(schemes))
        prepared(batch)
        return convert_pt2e(prepared)
    backend = torch_ao.get_backend_config()
    mapping = torch_ao.get_qconfig_mapping(schemes)
    prepared = prepare_fx(copy.deepcopy(model), mapping, (batch,), backend_config=backend)
    torch_ao.observe_inputs(prepared)(batch)
    return torch_ao.check_converted(convert_fx(prepared, backend_config=backend), schemes)


def same_codes(one: nn.Module, other: nn.Module) -> bool:
    a, b = coded_weights(one), coded_weights(other)
    return a.keys() == b.keys() and all(
        torch.equal(a[name].codes, b[name].codes)
        and torch.equal(a[name].codebooks, b[name].codebooks)
        and (a[name].bias is None) == (b[name].bias is None)
        and (a[name].bias is None or torch.equal(a[name].bias, b[name].bias))
        for name in a
    )


@pytest.mark.parametrize("host", HOSTS)
def test_what_is_evaluated_is_what_the_host_makes(host, model, images, evaluate, tmp_path):
    batch = images[:100]
    result = vq.tune(
        model, evaluate, BUDGET, [batch], candidates=LADDER, max_trials=4, host=host,
        folder=tmp_path,
    )  # fmt: skip
    assert result.passed
    kinds = {type(small) for small in evaluate.seen if coded_weights(small)}
    assert len(kinds) == 1 or all(issubclass(kind, GraphModule) for kind in kinds)
    assert isinstance(result.model, GraphModule) == (host != "torchao")
    assert evaluate(result.model) == result.score
    assert same_codes(result.model, by_hand(host, model, result.schemes, batch))
    fused = model if host == "torchao" else vq.fold_batch_norms(model)
    again = vq.load(tmp_path / "model.vq", fused)
    assert same_codes(result.model, again)
    assert torch.equal(again(images), result.model(images))


@pytest.mark.parametrize("host", HOSTS)
def test_training_and_rounding_go_with_the_codes(host, model, images, evaluate):
    batches = [images[:100]]
    result = vq.tune(
        model, evaluate, vq.LossBudget(absolute=1e-3), batches, candidates=[vq.KM(k=2)],
        max_trials=1, host=host, rest="float16",
        recovery=vq.Recovery(batches, epochs=1, max_trials=1),
    )  # fmt: skip
    trained = [trial for trial in result.trials if trial.phase == "recovery"]
    assert [trial.error for trial in trained] == [None]
    if result.passed:
        assert evaluate(result.model) == result.score


@pytest.mark.parametrize("model", [nn.LSTM(8, 8), nn.Linear(8, 8)], ids=["recurrent", "bare"])
def test_quantize_takes_every_weight(model):
    small = vq.compress(model, vq.KM(k=4)).eval()
    made, x = Shipped.by("torchao", model, None)(small), torch.randn(3, 2, 8)
    for one, other in zip(made(x), small(x), strict=True):
        assert one[0].equal(other[0])


@pytest.mark.parametrize("host", ["pt2e", "torch_ao"])
def test_a_layer_that_the_host_cannot_take_is_named_before_any_evaluation(host):
    class Upsampled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.up = nn.ConvTranspose1d(8, 8, 3)
            self.head = nn.Conv1d(8, 4, 3)

        def forward(self, x):
            return self.head(self.up(x))

    model, batch = Upsampled().eval(), torch.randn(3, 8, 5)

    def evaluate(_):
        raise AssertionError("too late")

    with pytest.raises(ValueError, match=rf"host='{host}'.*'up'"):
        vq.tune(model, evaluate, BUDGET, [batch], candidates=[vq.KM(k=4)], host=host)
    space = {"up": None, "*": [vq.KM(k=4)]}
    result = vq.tune(
        model, lambda m: m(batch).std().item(), vq.LossBudget(relative=0.9), [batch],
        candidates=space, max_trials=1, host=host,
    )  # fmt: skip
    assert [trial.error for trial in result.trials] == [None]


def test_bad_hosts(model, images, monkeypatch):
    def tune(host, calibration=None):
        vq.tune(model, lambda _: 1.0, BUDGET, calibration, candidates=LADDER, host=host)

    with pytest.raises(ValueError, match="'fx' is none of 'pt2e', 'torch_ao', 'torchao'"):
        tune("fx")
    for host in (5, str, object()):
        with pytest.raises(TypeError, match="host is 'pt2e', 'torch_ao', 'torchao', or has name"):
            tune(host)
    with pytest.raises(ValueError, match=r"host='pt2e'.*calibration="):
        tune("pt2e")
    monkeypatch.delitem(sys.modules, "vq_plugin.torchao.hosts")
    monkeypatch.delitem(sys.modules, "vq_plugin.torchao")
    monkeypatch.delitem(sys.modules, "vq_plugin.torchao.versions")
    monkeypatch.setitem(sys.modules, "torchao", None)
    with pytest.raises(ImportError, match=r"needs torchao.*pip install"):
        tune("torchao", [images])


def test_a_model_of_one_batch_size(images):
    class Fixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Linear(36, 5)

        def forward(self, x):
            return self.layer(x.reshape(100, 36))

    model, batch = Fixed().eval(), images[:100]
    settings = {"candidates": [vq.KM(k=4)], "max_trials": 1}

    def evaluate(small):
        return small(batch).std().item()

    budget = vq.LossBudget(relative=0.9)
    with pytest.raises(ValueError, match=r"host='pt2e'.*dynamic_batch=False"):
        vq.tune(model, evaluate, budget, [batch], host="pt2e", **settings)
    host = PT2E(dynamic_batch=False)
    result = vq.tune(model, evaluate, budget, [batch], host=host, **settings)
    assert [trial.error for trial in result.trials] == [None]


class Careless:
    """A host that does not give back what it was given."""

    name = "careless"

    def fused(self, model, example):
        return model

    def convert(self, model, schemes, example):
        small = vq.compress(model, schemes)
        next(m for m in small.modules() if isinstance(m, CodebookLayer)).codebooks.data += 1
        return small


def test_a_host_that_makes_other_layers_is_found_out(model, images):
    with pytest.raises(ValueError, match=r"'careless'.*layer 'first' has other codes"):
        vq.tune(model, lambda _: 1.0, BUDGET, [images], candidates=LADDER, host=Careless())


def test_an_evaluation_of_the_twin_is_not_taken_for_one_of_the_host(
    model, images, evaluate, tmp_path
):
    settings = {
        "calibration": [images[:100]], "candidates": LADDER, "max_trials": 2, "folder": tmp_path
    }  # fmt: skip

    def stop(_):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        vq.tune(model, evaluate, BUDGET, callback=stop, **settings)
    # The float model, twice, was not the host's.
    result = vq.tune(model, evaluate, BUDGET, host="torchao", **settings)
    assert result.resumed == 0
    assert all(trial.error is None for trial in result.trials)


def test_workers_can_be_sent_it(model, images):
    shipped = Shipped.by("pt2e", model, [images[:4]])
    sent = pickle.loads(pickle.dumps(shipped.evaluate(weights)))
    assert sent(vq.compress(shipped.model, vq.KM(k=4))) == ["again", "first", "head"]


def weights(small: nn.Module) -> list[str]:
    return sorted(coded_weights(small))


def test_fused_float_takes_inputs_of_all_forms(model, images):
    forms = [images[:2], (images[:2],), {"images": images[:2]}]
    assert all(type(fused_float(model, each).norm) is nn.Identity for each in forms)


def test_factors_and_exports_are_not_for_hosts(model, images, evaluate, tmp_path):
    factors = [vq.KM(k=4), "svd(rate=2)+km(k=16)"]
    linear = nn.Sequential(nn.Linear(256, 256)).eval()
    x = torch.randn(64, 256)
    with pytest.raises(
        ValueError, match=r"'torchao' codes layers as they are: leave svd.*layer '0'"
    ):
        vq.tune(linear, lambda m: 1.0, BUDGET, [x], candidates=factors, host="torchao")
    with pytest.raises(ValueError, match="export writes what compress makes, and host"):
        vq.tune(
            model, evaluate, BUDGET, [images], host="pt2e", export=["onnx"], folder=tmp_path
        )  # fmt: skip
