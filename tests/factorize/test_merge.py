"""Merged neurons: against models whose neurons repeat, and against least squares by numpy."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.workloads import digits


def repeated(layer: Any, times: int) -> None:
    """Gives a layer only so many different neurons, each several times."""
    count = len(layer.weight) // times
    layer.weight.data = layer.weight.data[:count].repeat_interleave(times, 0).contiguous()
    if getattr(layer, "bias", None) is not None:
        layer.bias.data = layer.bias.data[:count].repeat_interleave(times).contiguous()


class Chain(nn.Module):
    """All kinds of what may stand between layers."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.norm = nn.Conv2d(3, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12)
        self.b = nn.Conv2d(12, 8, 3)
        self.pool = nn.AdaptiveAvgPool2d(3)
        self.c, self.d, self.e = nn.Linear(72, 20), nn.Linear(20, 6), nn.Linear(20, 2)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        x = functional.max_pool2d(functional.gelu(self.norm(self.a(x))), 2)
        x = self.pool(torch.tanh(self.b(x)))
        x = self.c(x.view(x.size(0), -1)).sigmoid()
        return self.d(x), self.e(functional.dropout(x, 0.5, self.training))


@pytest.mark.parametrize("data", [None, [torch.randn(64, 3, 12, 12)]])
def test_equal_neurons_are_merged_without_loss(data: Any) -> None:
    torch.manual_seed(0)
    model = Chain().eval()
    for layer, times in ((model.a, 3), (model.b, 2), (model.c, 4)):
        repeated(layer, times)
    norm = model.norm
    for value in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
        assert value is not None
        value.data = torch.rand(4).repeat_interleave(3) + 0.5
    small: Any = vq.merge_neurons(model, {"a": 4, "b": 0.5, "c": 5}, data)
    assert (small.a.out_channels, small.norm.num_features, small.b.in_channels) == (4, 4, 4)
    assert (small.b.out_channels, small.c.in_features, small.c.out_features) == (4, 36, 5)
    assert (small.d.in_features, small.e.in_features, model.a.out_channels) == (5, 5, 12)
    x = torch.randn(5, 3, 12, 12)
    # With data part of the correlation of equal neurons is not believed.
    torch.testing.assert_close(small(x), model(x), rtol=1e-3, atol=1e-2 if data else 1e-5)


def test_clusters_add_up_what_leaves_them() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(5, 6), nn.ReLU(), nn.Linear(6, 3))
    first: Any = model[0]
    first.weight.data[3], first.bias.data[3] = first.weight.data[1], first.bias.data[1]
    small: Any = vq.merge_neurons(model, {"0": 5})
    added = model[2].weight.detach().clone()  # type: ignore[union-attr, operator]
    added[:, 1] += added[:, 3]
    kept = [at for at in range(6) if at != 3]
    torch.testing.assert_close(small[2].weight[:, :2], added[:, kept][:, :2])
    torch.testing.assert_close(small[2].weight, added[:, kept])


def test_calibrated_weights_are_the_least_squares_fit() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    x = torch.randn(4000, 30) @ torch.randn(30, 30) / 3
    small: Any = vq.merge_neurons(model, {"0": 15}, [x])
    with torch.no_grad():
        hidden, wanted, outputs = small[:2](x).numpy(), model(x).numpy(), small(x).numpy()
    design = np.concatenate([hidden, np.ones((len(hidden), 1))], 1)
    best = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
    # Part of the correlation is not believed.
    assert (best**2).sum() <= ((outputs - wanted) ** 2).sum() <= 1.3 * (best**2).sum()


def test_neurons_are_chosen_better_than_at_random() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 8)).eval()
    x = torch.randn(2000, 30) @ torch.randn(30, 30) / 3
    with torch.no_grad():
        hidden, wanted = model[:2](x).numpy(), model(x).numpy()
        outputs = vq.merge_neurons(model, {"0": 15}, [x])(x).numpy()
    errors = []
    for seed in range(30):
        some = np.random.default_rng(seed).choice(40, 15, replace=False)
        design = np.concatenate([hidden[:, some], np.ones((len(hidden), 1))], 1)
        rest = wanted - design @ np.linalg.lstsq(design, wanted, rcond=None)[0]
        errors.append((rest**2).sum())
    assert ((outputs - wanted) ** 2).sum() < min(errors)


def test_half_of_a_network_keeps_its_accuracy_and_is_compressed(tmp_path: Path) -> None:
    model = digits.model()
    small = vq.merge_neurons(
        model, {"features.3": 0.75, "classifier.0": 0.25}, digits.calibration()
    )
    assert digits.test(small) > digits.test(model) - 0.02
    assert sum(p.numel() for p in small.parameters()) < 0.25 * 138_794
    coded = vq.compress(small, vq.KM(k=32), digits.calibration())
    vq.save(coded, tmp_path / "merged.vq")
    fresh = vq.merge_neurons(digits.DigitsCNN(), {"features.3": 24, "classifier.0": 64})
    again = vq.load(tmp_path / "merged.vq", fresh.eval())
    assert digits.test(again) == digits.test(coded) > digits.test(model) - 0.03


def test_factors_are_layers_like_others() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(30, 40), nn.ReLU(), nn.Linear(40, 30))
    small: Any = vq.factorize(model, {"2": vq.SVD(rank=8)})
    merged: Any = vq.merge_neurons(small, {"0": 20})
    assert merged[2].first.in_features == 20
    assert merged(torch.zeros(2, 30)).shape == (2, 30)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)
        self.depthwise = nn.Conv2d(4, 4, 3, groups=4)
        self.c = nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.b(self.a(x).relu())
        return self.c(self.depthwise(x + y))


def test_chains_that_break_name_where() -> None:
    with pytest.warns(UserWarning, match="layers stayed as they are") as caught:
        small: Any = vq.merge_neurons(Residual(), 0.5)
    assert small.a.out_channels == small.b.in_channels == 2
    assert small.b.out_channels == 4
    text = str(caught[0].message)
    assert "'b': its outputs go into 'add', which may mix neurons" in text
    assert "'depthwise': a Conv2d of several groups has no neurons" in text
    assert "'c': its outputs are outputs of the model" in text
    with pytest.raises(ValueError, match="layer 'b': its outputs go into 'add'"):
        vq.merge_neurons(Residual(), {"b": 0.5})


def broken(*layers: nn.Module) -> nn.Module:
    return nn.Sequential(nn.Conv2d(4, 8, 3), *layers)


@pytest.mark.parametrize(
    ("model", "text"),
    [
        (broken(nn.GroupNorm(2, 8), nn.Conv2d(8, 8, 3)), "go into 'GroupNorm', which may mix"),
        (broken(nn.Softmax(1), nn.Conv2d(8, 8, 3)), "go into 'Softmax'"),
        (broken(nn.ReLU(), nn.BatchNorm2d(8), nn.Conv2d(8, 8, 3)), "not first and alone"),
        (broken(nn.BatchNorm2d(8, track_running_stats=False), nn.Conv2d(8, 8, 3)), "no statistics"),
        (broken(nn.Conv2d(8, 8, 3, groups=2)), "'1', a Conv2d, takes its outputs otherwise"),
        (broken(nn.Linear(8, 8)), "'1', a Linear, takes its outputs otherwise"),
        (broken(nn.PReLU(8), nn.Conv2d(8, 8, 3)), "go into 'PReLU'"),
        (broken(nn.Flatten(2), nn.Linear(64, 8)), "go into 'Flatten'"),
        (broken(nn.ReLU()), "outputs of the model"),
    ],
)
def test_what_may_not_stand_between(model: nn.Module, text: str) -> None:
    with pytest.raises(ValueError, match=f"layer '0': .*{text}"):
        vq.merge_neurons(model, {"0": 0.5})


class Branching(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x if x.sum() > 0 else -x


def test_bad_input() -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8))
    for keep in (0, 1.0, 1.5, 0.0, -1, float("nan")):
        with pytest.raises(ValueError, match="keep is a share above 0 and below 1"):
            vq.merge_neurons(model, keep)
    with pytest.raises(TypeError, match="keep is a share or a number, got 'half'"):
        vq.merge_neurons(model, "half")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="layer '0' has 8 neurons, fewer than 9"):
        vq.merge_neurons(model, {"0": 9})
    with pytest.raises(ValueError, match=r"torch\.fx cannot trace the model"):
        vq.merge_neurons(nn.Sequential(nn.Linear(8, 8), Branching(), nn.Linear(8, 8)), {"0": 4})
    twice = nn.Linear(8, 8)
    with pytest.raises(ValueError, match="it runs 2 times in a pass"):
        vq.merge_neurons(nn.Sequential(twice, twice, nn.Linear(8, 8)), {"0": 4})
    tied = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 8), nn.Linear(8, 8))
    tied[3].weight = tied[0].weight
    with pytest.raises(ValueError, match="layer '0': it shares parameters"):
        vq.merge_neurons(tied, {"0": 4})
    model[2].bias = model[0].bias
    with pytest.raises(ValueError, match="layer '0': it shares parameters"):
        vq.merge_neurons(model, {"0": 4})
    with pytest.raises(ValueError, match="layer '0': a Embedding has no neurons"):
        vq.merge_neurons(nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8)), {"0": 3})


def test_hooks_attributes_dtype_and_mode_stay_and_bytes_repeat() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 32), nn.ReLU(), nn.Linear(32, 8)).double().eval()
    layer: Any = model[0]
    layer.note = "kept"
    layer.weight.requires_grad_(False)
    small: Any = vq.merge_neurons(model, {"0": 8}, [torch.randn(50, 8).double()])
    assert small[0].note == "kept"
    assert (small[0].weight.requires_grad, small[2].weight.dtype) == (False, torch.float64)
    assert not small.training
    again: Any = vq.merge_neurons(model, {"0": 8})
    other: Any = vq.merge_neurons(model, {"0": 8})
    assert torch.equal(again[2].weight, other[2].weight)
