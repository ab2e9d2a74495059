"""Channels that make no difference go, and nothing else changes."""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.factorize.chains import Chain, find_chain
from vq_plugin.workloads import digits


def same(small: nn.Module, model: nn.Module, x: Tensor) -> None:
    torch.testing.assert_close(small(x), model(x), rtol=1e-5, atol=1e-6)


def normalized(norm: nn.BatchNorm2d) -> None:
    """Statistics and scales as of a trained one."""
    count = norm.num_features
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert value is not None
        value.data = torch.rand(count) + 0.5


def chain() -> Any:
    """Two convolutions, one of which has batch norm, and two dense layers."""
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12), nn.ReLU(),
        nn.MaxPool2d(2), nn.Conv2d(12, 8, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2),
        nn.Flatten(), nn.Linear(32, 20), nn.Tanh(), nn.Dropout(), nn.Linear(20, 5),
    ).eval()  # fmt: skip
    normalized(model[1])  # type: ignore[arg-type]
    return model


X = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def test_what_nobody_reads_goes() -> None:
    model = chain()
    model[4].weight.data[:, :5] = 0
    model[8].weight.data[:, 4:12] = 0  # the second and third channel, at four places each
    model[11].weight.data[:, 7] = 0
    small: Any = vq.remove_empty_channels(model)
    assert (small[0].out_channels, small[1].num_features, small[4].in_channels) == (7, 7, 7)
    assert (small[4].out_channels, small[8].in_features) == (6, 24)
    assert (small[8].out_features, small[11].in_features) == (19, 19)
    assert model[0].out_channels == 12
    same(small, model, X)


def test_what_goes_may_leave_others_unread() -> None:
    model = chain()
    model[11].weight.data[:, :10] = 0
    model[8].weight.data[10:, :16] = 0  # read by those alone that nobody reads
    model[4].weight.data[4:, :9] = 0
    small: Any = vq.remove_empty_channels(model)
    assert (small[8].out_features, small[4].out_channels, small[0].out_channels) == (10, 4, 3)
    same(small, model, X)


def test_deep_models_are_walked_a_few_times(monkeypatch: pytest.MonkeyPatch) -> None:
    """However many layers lose channels: beginning anew behind each took 16 s for 200 of them."""
    layers = [nn.Linear(8, 8) for _ in range(30)]
    for layer in layers:
        layer.weight.data[:, ::4] = 0
    model = nn.Sequential(*(each for layer in layers for each in (layer, nn.ReLU())))
    walked = []

    def counted(graph: fx.Graph, modules: Any, name: str) -> Chain:
        walked.append(name)
        return find_chain(graph, modules, name)

    monkeypatch.setattr(import_module("vq_plugin.factorize.empty"), "find_chain", counted)
    small: Any = vq.remove_empty_channels(model)
    assert [each.out_features for each in small[:-2:2]] == 29 * [6]
    assert len(walked) <= 3 * len(layers)


def test_constants_go_where_they_are_zero_or_a_bias_takes_them() -> None:
    model = chain()
    model[0].weight.data[:6] = 0
    model[1].bias.data[:3] = -5  # nothing behind the ReLU; the next three give something
    model[4].weight.data[:2] = 0
    model[4].bias.data[:2] = torch.tensor([0.5, -0.5])
    model[8].weight.data[:4] = 0
    small: Any = vq.remove_empty_channels(model)
    # A border of zeros is around what the second convolution takes: three have to stay.
    assert (small[0].out_channels, small[4].out_channels, small[8].out_features) == (9, 6, 16)
    same(small, model, X)
    model[4].padding = (0, 0)
    small = vq.remove_empty_channels(model)
    assert small[0].out_channels == 6
    same(small, model, X)


def test_a_norm_that_scales_by_zero_gives_a_constant() -> None:
    model = chain()
    model[1].weight.data[2:4], model[1].bias.data[2:4] = 0, -1
    small: Any = vq.remove_empty_channels(model)
    assert small[0].out_channels == 10
    same(small, model, X)


@pytest.mark.parametrize(
    ("between", "consumer", "left"),
    [
        (nn.ReLU(), nn.Linear(6, 2), 4),
        (nn.ReLU(), nn.Linear(6, 2, bias=False), 6),
        (nn.Sigmoid(), nn.Linear(6, 2), 4),
        (nn.Hardtanh(-1, 0), nn.Linear(6, 2, bias=False), 4),
    ],
)
def test_a_constant_needs_a_bias(between: nn.Module, consumer: nn.Module, left: int) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 6), between, consumer).eval()
    first: Any = model[0]
    first.weight.data[:2], first.bias.data[:2] = 0, 0.7
    small: Any = vq.remove_empty_channels(model)
    assert small[0].out_features == left
    same(small, model, torch.randn(5, 3))


class Functions(nn.Module):
    """Activations as functions and methods, and pools with a border."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b, self.c = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3), nn.Linear(32, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = functional.avg_pool2d(functional.leaky_relu(self.a(x), 0.1), 3, 1, padding=1)
        x = functional.adaptive_max_pool2d(self.b(x).clone().relu_(), 2)
        scores: Tensor = self.c(functional.dropout(x.flatten(1), 0.5, self.training))
        return scores


def test_pools_with_a_border_keep_constants_but_zero() -> None:
    torch.manual_seed(0)
    model: Any = Functions().eval()
    model.a.weight.data[:4], model.a.bias.data[:4] = 0, torch.tensor([0.0, 0.0, 1.0, -1.0])
    small: Any = vq.remove_empty_channels(model)
    assert small.a.out_channels == 6
    same(small, model, X)


def products() -> Any:
    torch.manual_seed(0)
    model = chain()
    return vq.factorize(model, {"4": vq.Basis(d=4), "8": vq.SVD(rank=7)}).eval()


def without(small: Any) -> None:
    """Channels of products have no coefficient."""
    small[4].coefficients.weight.data[:, 8:24] = 0  # four inputs, by four kernels each
    small[4].coefficients.weight.data[:3] = 0
    small[4].coefficients.bias.data[:3] = 0
    small[8].second.weight.data[:, :2] = 0
    small[11].weight.data[:, 3:6] = 0


def test_products_lose_channels_around_and_between(tmp_path: Path) -> None:
    model = products()
    without(model)
    small: Any = vq.remove_empty_channels(model)
    assert (small[0].out_channels, small[4].in_channels, small[4].out_channels) == (8, 8, 5)
    assert small[4].coefficients.weight.shape == (5, 32, 1, 1)
    assert (str(small[8].factor), small[8].in_features, small[8].out_features) == (
        "svd(rank=5)", 20, 17,
    )  # fmt: skip
    assert small[8].weight.shape == (17, 20)
    same(small, model, X)
    same(small.train().eval(), model, X)

    coded = vq.compress(small, vq.KM(k=8))
    whole = vq.summary(vq.compress(chain(), vq.KM(k=8))).model_float_nbytes
    assert vq.summary(coded).model_float_nbytes == whole
    vq.save(coded, tmp_path / "small.vq")
    again = vq.load(tmp_path / "small.vq", chain())
    assert torch.equal(again(X), coded(X))
    assert vq.summary(again).model_float_nbytes == whole
    assert torch.equal(vq.load(tmp_path / "small.vq", small)(X), coded(X))


def test_a_rank_is_never_above_that_of_its_matrix(tmp_path: Path) -> None:
    model = products()
    model[11].weight.data[:, 2:] = 0
    small: Any = vq.remove_empty_channels(model)
    assert small[8].second.weight.shape == (20, 7)
    same(small, model, X)
    vq.save(vq.compress(small, vq.KM(k=8)), tmp_path / "small.vq")
    vq.load(tmp_path / "small.vq", chain())


def test_the_search_counts_against_the_whole_model(tmp_path: Path) -> None:
    model = digits.model()
    start: Any = vq.factorize(model, {"classifier.0": vq.SVD(rate=2)})
    start.classifier[0].second.weight.data[:, -60:] = 0
    start.features[3].weight.data[:, 3] = 0
    small: Any = vq.remove_empty_channels(start)
    assert small.features[0].out_channels == 15
    assert small.classifier[0].first.out_features == start.classifier[0].first.out_features - 60
    plain, narrow = (
        vq.tune(
            model, digits.evaluate, vq.LossBudget(absolute=0.9), candidates=[vq.KM(k=16)],
            start=each, max_trials=1, folder=tmp_path / name,
        )
        for name, each in (("plain", start), ("narrow", small))
    )  # fmt: skip
    assert narrow.rate > plain.rate
    again = vq.load(tmp_path / "narrow" / "model.vq", model)
    assert digits.evaluate(again) == narrow.score


@pytest.mark.parametrize(
    "narrowed", [vq.remove_empty_channels, lambda model: vq.merge_neurons(model, {"4": 6})]
)
def test_what_is_made_in_inference_mode_trains(
    narrowed: Callable[[nn.Module], nn.Module], tmp_path: Path
) -> None:
    model = chain()
    model[8].weight.data[:, :8] = 0
    with torch.inference_mode():
        small = narrowed(model)
        vq.save(vq.compress(small, vq.KM(k=4)), tmp_path / "m.vq")
        again = vq.load(tmp_path / "m.vq", model)
    for each in (small, again):
        each(X).sum().backward()


def test_one_channel_stays() -> None:
    model = chain()
    model[4].weight.data.zero_()
    small: Any = vq.remove_empty_channels(model)
    assert small[0].out_channels == 1
    same(small, model, X)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.c(x + self.b(self.a(x).relu()))
        return scores


def test_what_residual_sums_share_stays() -> None:
    model: Any = Residual()
    model.b.weight.data[:, 1] = 0
    model.c.weight.data[:, 2] = 0
    small: Any = vq.remove_empty_channels(model)
    assert (small.a.out_channels, small.b.out_channels) == (3, 4)
    same(small, model, torch.randn(2, 4, 6, 6))


def tied() -> nn.Module:
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    model[2].weight = model[0].weight
    return model


class Branching(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x if x.sum() > 0 else -x)


@pytest.mark.parametrize("build", [tied, lambda: nn.Sequential(Branching(4, 4), nn.Linear(4, 2))])
def test_weights_in_common_and_models_without_a_trace_stay(build: Callable[[], nn.Module]) -> None:
    torch.manual_seed(0)
    model: Any = build()
    model[-1].weight.data[:, 0] = 0
    small: Any = vq.remove_empty_channels(model)
    assert small is not model
    same(small, model, torch.randn(3, 4))
    assert small[0].out_features == 4


def test_files_of_merged_neurons_are_loaded_into_a_whole_model(tmp_path: Path) -> None:
    merged = vq.merge_neurons(digits.model(), {"features.3": 24, "classifier.0": 64})
    coded = vq.compress(merged, vq.KM(k=8))
    vq.save(coded, tmp_path / "merged.vq")
    again = vq.load(tmp_path / "merged.vq", digits.DigitsCNN())
    assert digits.test(again) == digits.test(coded)
    assert vq.summary(again).model_float_nbytes == vq.summary(coded).model_float_nbytes


def test_a_layer_whose_outputs_are_the_models_does_not_get_narrower(tmp_path: Path) -> None:
    narrow = nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 2))
    vq.save(vq.compress(narrow, vq.KM(k=4)), tmp_path / "m.vq")
    with pytest.raises(vq.CheckpointError, match="layer '2'"):
        vq.load(tmp_path / "m.vq", nn.Sequential(nn.Linear(4, 6), nn.ReLU(), nn.Linear(6, 3)))
