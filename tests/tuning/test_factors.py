"""Factors among the candidates of a search."""

import json
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.factorize import LowRank
from vq_plugin.tuning.candidates import Fits
from vq_plugin.tuning.deadline import Deadline
from vq_plugin.tuning.layers import layers_of, observed
from vq_plugin.tuning.space import FACTORS, LADDER, search_space

FORMS = [f"svd(rate={rate})+km(k=48)" for rate in (2, 4, 8)]
PLAIN = [vq.KM(k=2), vq.KM(k=4), vq.KM(k=16), None]


def network(low_rank: bool = True) -> nn.Sequential:
    """Two layers of 128 inputs, the first of rank 4 or of none that is low."""
    generator = torch.Generator().manual_seed(0)
    model = nn.Sequential(nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10))
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight.copy_(torch.randn(layer.weight.shape, generator=generator) / 11)
        if low_rank:
            left = torch.randn(128, 4, generator=generator)
            right = torch.randn(4, 128, generator=generator)
            model[0].weight.copy_(left @ right / 20)
    return model


@pytest.fixture
def inputs() -> Tensor:
    return torch.randn(400, 128, generator=torch.Generator().manual_seed(1))


def tuned(model: nn.Module, inputs: Tensor, **settings: Any) -> vq.TuneResult:
    with torch.no_grad():
        labels = model(inputs).argmax(1)

    def correct(small: nn.Module) -> Tensor:
        with torch.no_grad():
            return small(inputs).argmax(1) == labels

    settings = {"calibration": [inputs[:200]], "candidates": {"0": [*PLAIN, *FORMS], "2": PLAIN,
                }, "max_trials": 12, **settings}  # fmt: skip
    return vq.tune(model, correct, vq.LossBudget(absolute=0.1), **settings)


def test_a_layer_of_low_rank_gets_factors_and_the_result_can_be_made_again(
    inputs: Tensor, tmp_path: Path
) -> None:
    model = network()
    result = tuned(model, inputs, folder=tmp_path)
    assert result.passed
    assert result.schemes is not None
    assert isinstance(result.schemes["0"], vq.Factored)
    assert isinstance(result.model.get_submodule("0"), LowRank)
    plain = tuned(model, inputs, candidates=PLAIN)
    assert result.rate > 1.5 * plain.rate

    again = vq.compress(model, result.schemes, [inputs[:200]])
    values = result.model.state_dict()
    assert all(torch.equal(value, values[name]) for name, value in again.state_dict().items())
    loaded = vq.load(tmp_path / "model.vq", network(low_rank=False))
    assert torch.equal(loaded(inputs), result.model(inputs))

    report = json.loads((tmp_path / "report.json").read_text())
    assert [layer["name"] for layer in report["layers"]] == ["0.first", "0.second", "2"]
    texts = {name: str(form) for name, form in result.schemes.items()}
    assert report["result"]["schemes"] == texts
    assert vq.compress(model, texts, [inputs[:200]]).state_dict().keys() == values.keys()
    assert report["sizes"]["nbytes"] == result.trials[result.chosen_trial or 0].nbytes


def test_a_layer_of_no_low_rank_does_not(inputs: Tensor) -> None:
    result = tuned(network(low_rank=False), inputs)
    assert result.schemes is not None
    assert isinstance(result.schemes["0"], vq.KM)


def test_factors_alone(inputs: Tensor) -> None:
    result = tuned(network(), inputs, candidates={"0": FORMS[1]}, timeout=600)
    assert result.passed
    assert {name: str(form) for name, form in (result.schemes or {}).items()} == {"0": FORMS[1]}


def test_without_calibration(inputs: Tensor) -> None:
    with pytest.warns(UserWarning, match="no calibration data"):
        result = tuned(network(), inputs, calibration=None)
    assert result.schemes is not None
    assert isinstance(result.schemes["0"], vq.Factored)


def test_a_fit_travels_to_another_process(inputs: Tensor) -> None:
    model = network()
    space = search_space(model, {"0": FORMS})
    layers, cut = observed(layers_of(model, space), model, [inputs[:200]], 0, Deadline())
    assert cut is None
    task = Fits(layers)._task((0, 1))
    here, there = task(), pickle.loads(pickle.dumps(task))()
    assert torch.equal(here.small.decode(), there.small.decode())
    assert here.candidate == there.candidate


def test_forecasts_are_near_what_fits_give(inputs: Tensor) -> None:
    model = network(low_rank=False)
    forms = [*FORMS, "svd(rate=4)+uniform(step=0.5)"]
    layers, _ = observed(
        layers_of(model, search_space(model, {"0": forms})), model, [inputs[:200]], 0, Deadline()
    )
    fits = Fits(layers)
    assert fits.fit([(at,) for at in range(len(forms))], Deadline())
    for at, expected in enumerate(layers[0].forecasts):
        found = fits.fitted[0, at].candidate
        assert found.scheme == expected.scheme
        assert 0.7 < expected.nbytes / found.nbytes < 1.4
        assert 0.5 < expected.error / found.error < 2


def test_a_deadline_leaves_factors_out_and_says_so(inputs: Tensor) -> None:
    model = network()
    layers = layers_of(model, search_space(model, {"0": [*PLAIN, *FORMS]}))
    assert len(layers[0].schemes) == len(PLAIN)
    found, cut = observed(layers, model, [inputs], 0, Deadline.after(0))
    assert found[0].schemes == layers[0].schemes
    assert cut == "calibration was not read; factors of 1 layers were not looked at"


def test_what_is_built_in_is_for_layers_that_have_such_factors() -> None:
    model = nn.Sequential(
        nn.Embedding(300, 128), nn.Linear(128, 128), nn.LSTM(128, 32), nn.Linear(128, 8),
        nn.Linear(8, 4000),
    )  # fmt: skip
    space = search_space(model)
    ladders = {name for name, ladder in space.items() if ladder == LADDER}
    assert {"0", "2.weight_ih_l0", "2.weight_hh_l0", "3"} <= ladders
    assert space["1"] == (*LADDER, *FACTORS)
    # Rates that would ask for less than rank 1.
    assert [form.factor.rate for form in space["4"] if isinstance(form, vq.Factored)] == [
        2, 2, 4, 4,
    ]  # fmt: skip


def test_factors_have_no_factors() -> None:
    small = vq.factorize(network(), {"0": vq.SVD(rate=2)})
    assert not any(
        isinstance(f, vq.Factored) for ladder in search_space(small).values() for f in ladder
    )
    with pytest.raises(ValueError, match="layer '0' is factorized already"):
        search_space(small, {"0.first": FORMS[0]})
    with pytest.raises(ValueError, match="layer '0' is factorized already"):
        vq.compress(small, {"0.first": FORMS[0]})


def test_what_is_named_has_to_have_them() -> None:
    model = nn.Sequential(nn.Embedding(300, 128), nn.Linear(128, 128))
    for candidates, said in (
        ({"0": [FORMS[0], "km(k=4)"]}, "layer '0': svd.*Embedding has no factors"),
        ({"*": FORMS[0]}, "layer '0': svd.*Embedding has no factors"),
        ({"1": ["svd(rank=200)+km(k=4)", None]}, "layer '1': rank 200 is above 128"),
        ({"1": ["svd(rate=70)+km(k=4)", None]}, "layer '1': svd.rate=70. asks for less than rank"),
    ):
        with pytest.raises(ValueError, match=said):
            search_space(model, candidates)


def test_small_layers_that_get_nothing_else_are_named() -> None:
    model = nn.Sequential(nn.Linear(32, 64), nn.ReLU(), nn.Linear(64, 8))
    form = "svd(rate=4)+km(k=4)"
    for candidates in (form, {"re:0": [form], "2": "km(k=4)"}):
        with pytest.raises(ValueError, match=r"layer '0': factors seldom pay.*name the layer"):
            search_space(model, candidates)
    with pytest.raises(ValueError, match="nothing to search; layer '0': factors seldom pay"):
        search_space(model, [form, None])
    assert search_space(model, {"0": form, "*": [form, None]})["2"] == (None,)


def test_the_built_in_candidates_take_layers_that_pass_nothing_on(inputs: Tensor) -> None:
    model = network()
    nn.init.constant_(model[0].bias, -1000.0)
    with pytest.warns(UserWarning, match="no gradient reaches 0, 2: "):
        result = vq.tune(model, lambda each: 0.5, vq.LossBudget(0.5), [inputs[:64]], max_trials=2)
    assert result.passed


@pytest.mark.parametrize("factor", ["svd(rate=2)", "svd(rate=2,split=spatial)", "basis(d=3)"])
@pytest.mark.parametrize("scheme", ["km(k=8)", "uniform(step=0.5)"])
def test_convolutions_have_forecasts_too(factor: str, scheme: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(32, 32, 3, groups=2), nn.Flatten(), nn.Linear(32, 4))
    form = f"{factor}+{scheme}"
    space = search_space(model, {"0": [form, None]})
    layers, _ = observed(layers_of(model, space), model, [torch.randn(64, 32, 3, 3)], 0, Deadline())
    at = [str(each).split("+")[0] for each in layers[0].schemes].index(factor)
    fits = Fits(layers)
    assert fits.fit([(at,)], Deadline())
    assert 0.6 < layers[0].forecasts[at].nbytes / fits.fitted[0, at].candidate.nbytes < 1.6
