"""What public functions are given: numbers of other libraries are numbers, and errors are short."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import vq_plugin as vq
from vq_plugin.arguments import brief


@pytest.mark.parametrize("whole", [np.int64, np.int32, np.uint8])
def test_settings_of_numpy_are_numbers(whole: Callable[[int], Any]) -> None:
    made = [
        vq.KM(k=whole(16), group=whole(4)),
        vq.PQ(k=whole(16), dim=whole(8)),
        vq.RQ(k=whole(16), stages=whole(2), dim=whole(8)),
        vq.Signs(levels=whole(2), block=whole(4)),
        vq.Uniform(step=np.float32(0.5), k=whole(16)),
    ]
    plain = [
        vq.KM(k=16, group=4),
        vq.PQ(k=16, dim=8),
        vq.RQ(k=16, stages=2, dim=8),
        vq.Signs(levels=2, block=4),
        vq.Uniform(step=0.5, k=16),
    ]
    for one, two in zip(made, plain, strict=True):
        assert (one, str(one), repr(one)) == (two, str(two), repr(two))
        assert json.loads(json.dumps(one.to_dict())) == two.to_dict()
    assert repr(vq.SVD(rank=whole(3))) == repr(vq.SVD(rank=3))
    assert str(vq.SVD(rate=np.float64(4))) == str(vq.SVD(rate=4.0))
    assert repr(vq.Basis(d=whole(3))) == repr(vq.Basis(d=3))


@pytest.mark.parametrize("true", [1, np.True_])
def test_what_equals_a_choice_is_that_choice(true: Any) -> None:
    scheme = vq.KM(k=16, keep_zeros=true)
    assert scheme.keep_zeros is True
    assert str(scheme) == "km(k=16,keep_zeros=true)"


def test_budgets_take_numbers_of_numpy() -> None:
    budget = vq.LossBudget(
        relative=np.float32(0.25), confidence=np.float64(0.75), min_agreement=np.float32(0.5)
    )
    assert repr(budget) == repr(vq.LossBudget(relative=0.25, confidence=0.75, min_agreement=0.5))
    assert vq.LossBudget(absolute=np.int64(1)) == vq.LossBudget(absolute=1)


@pytest.mark.parametrize("name", ["confidence", "min_agreement", "margin"])
def test_budgets_say_which_number_is_a_text(name: str) -> None:
    with pytest.raises(ValueError, match=f"{name}|a {name} is .*'0.6'"):
        vq.LossBudget(relative=0.01, **{name: "0.6"})  # type: ignore[arg-type]


@pytest.mark.parametrize("value", ["false", 2, None])
def test_the_direction_of_a_metric_is_true_or_false(value: Any) -> None:
    with pytest.raises(TypeError, match="higher_is_better must be True or False, got"):
        vq.LossBudget(relative=0.01, higher_is_better=value)


@pytest.mark.parametrize(
    "call",
    [
        lambda small, path: vq.compress(nn.Linear(4, 4), vq.KM(), fold="no"),  # type: ignore[arg-type]
        lambda small, path: vq.export_onnx(small, path, torch.ones(1, 4), "no"),  # type: ignore[arg-type]
        lambda small, path: vq.export_aoti(small, path, torch.ones(1, 4), "no"),  # type: ignore[arg-type]
    ],
)
def test_texts_are_no_flags(call: Callable[[nn.Module, Path], object], tmp_path: Path) -> None:
    small = vq.compress(nn.Linear(4, 4), vq.KM(k=4))
    with pytest.raises(TypeError, match="must be True or False, got 'no'"):
        call(small, tmp_path / "m.pt2")
    assert list(tmp_path.iterdir()) == []


def _bits(model: nn.Module) -> list[torch.Tensor]:
    return [value.clone() for value in model.state_dict().values()]


def test_seeds_of_numpy_are_seeds() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 48))
    data = [torch.randn(32, 64)]
    for scheme in (vq.PQ(k=16, dim=4), "auto"):
        two = vq.compress(model, scheme, data, seed=3)
        one = vq.compress(model, scheme, data, seed=np.int64(3))  # type: ignore[arg-type]
        assert all(map(torch.equal, _bits(one), _bits(two)))


def _model() -> nn.Module:
    return nn.Sequential(*(nn.Linear(8, 8) for _ in range(30)))


@pytest.mark.parametrize("seed", ["0", 1.5, None, True, torch.tensor(1)])
def test_what_is_no_seed_is_said_by_its_name(seed: Any) -> None:
    weight = torch.randn(32, 32)
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        vq.quantize_weight(weight, vq.KM(k=4), seed=seed)
    with pytest.raises(TypeError, match="seed must be a whole number, got"):
        vq.compress(_model(), vq.KM(k=4), seed=seed)


@pytest.mark.parametrize(
    ("weight", "importance", "message"),
    [
        (np.ones((4, 4)), None, "the weight is a ndarray, no tensor; make one .*from_numpy"),
        ([[1.0, 2.0]], None, "the weight is a list, no tensor"),
        (nn.Linear(4, 4), None, "the weight is a Linear, no tensor"),
        (torch.ones(4, 4), np.ones(4), "importance is a ndarray, no tensor; .*from_numpy"),
        (torch.ones(4, 4), 1.0, "importance is a float, no tensor"),
    ],
)
def test_weights_and_importances_are_tensors(weight: Any, importance: Any, message: str) -> None:
    with pytest.raises(TypeError, match=message):
        vq.quantize_weight(weight, vq.KM(k=4), importance)


def test_a_schemes_text_is_a_text() -> None:
    with pytest.raises(TypeError, match=r"a scheme's text is such as .*, got KM\(k=16\)"):
        vq.parse_scheme(vq.KM())  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "call",
    [
        lambda model, data: vq.compress(model, model),
        lambda model, data: vq.compress(model, {"0": model}),
        lambda model, data: vq.compress(model, {model: vq.KM()}),
        lambda model, data: vq.compress(model, vq.KM(), seed=model),
        lambda model, data: vq.quantize_weight(torch.ones(8, 8), model),
        lambda model, data: vq.factorize(model, model),
        lambda model, data: vq.factorize(model, {"0": model}),
        lambda model, data: vq.KM(k=model),
        lambda model, data: vq.set_precision(model, model),
        lambda model, data: vq.set_memory(model, model),
        lambda model, data: vq.tune(model, data),
        lambda model, data: vq.tune(model, len, data),
        lambda model, data: vq.tune(model, len, recovery=data),
        lambda model, data: vq.tune(model, len, max_trials=data),
        lambda model, data: vq.LossBudget(relative=data),
    ],
)
def test_a_model_or_data_in_the_wrong_place_is_not_shown_whole(
    call: Callable[[Any, Any], object],
) -> None:
    with pytest.raises((TypeError, ValueError)) as caught:
        call(_model(), [torch.randn(100, 8)])
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 400


def test_short_values_are_shown_as_they_are() -> None:
    assert brief("km(k=16)") == "'km(k=16)'"
    assert brief(_model()).endswith("...")


def test_neurons_are_merged_by_numbers_of_numpy() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    for one, two in ((np.int64(8), 8), (np.float32(0.5), 0.5)):
        found = [
            vq.merge_neurons(model, {"0": keep}, seed=seed)
            for keep, seed in ((one, np.int64(1)), (two, 1))
        ]  # type: ignore[dict-item,arg-type]
        assert all(map(torch.equal, *map(_bits, found)))
    with pytest.raises(TypeError, match="seed must be a whole number, got '1'"):
        vq.merge_neurons(model, {"0": 8}, seed="1")  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"a preset's change must be above 0 and below 1, got '0\.1'"
    ):
        vq.Preset(change="0.1")  # type: ignore[arg-type]
