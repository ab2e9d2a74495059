"""``tune``: the smallest setting that holds, and never a model over budget."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

import vq_plugin as vq
from vq_plugin.codebook import expected_nbytes
from vq_plugin.tuning import LADDER
from vq_plugin.tuning import search as search_module

CANDIDATES: list[vq.Scheme] = [
    vq.KM(k=256),
    vq.KM(k=2),
    vq.PQ(k=16, dim=4, codebooks="tensor"),
    vq.KM(k=16),
    vq.KM(k=4),
]
SHAPE = (96, 64)


def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(*SHAPE[::-1]), nn.ReLU(), nn.Linear(96, 4))


def error_of(weight: torch.Tensor, scheme: vq.Scheme) -> float:
    """Relative error of a fit, straight from ``quantize_weight``."""
    decoded = vq.quantize_weight(weight, scheme).decode()
    return float((decoded - weight).square().sum() / weight.square().sum())


class Score:
    """A metric that is 1 for the float model and falls with the decoded weights' error."""

    def __init__(self, float_model: nn.Module, of_error: Callable[[float], float]) -> None:
        self.weight = float_model[0].weight.detach().clone()  # type: ignore[index]
        self.of_error = of_error
        self.calls = 0

    def __call__(self, candidate: nn.Module) -> float:
        self.calls += 1
        weight = candidate[0].weight.detach()  # type: ignore[index]
        return self.of_error(
            float((weight - self.weight).square().sum() / self.weight.square().sum())
        )


def only_first(scheme: vq.Scheme) -> dict[Any, Any]:
    return {"0": scheme}


@settings(max_examples=10)
@given(limit=st.floats(0.0005, 0.9), lower_is_better=st.booleans())
def test_it_takes_the_smallest_setting_that_holds(limit: float, lower_is_better: bool) -> None:
    net = model()
    errors = {scheme: error_of(net[0].weight, scheme) for scheme in CANDIDATES}  # type: ignore[index]
    sign = -1 if lower_is_better else 1
    score = Score(net, lambda error: 1 - sign * error)
    budget = vq.LossBudget(relative=limit, higher_is_better=not lower_is_better)
    result = vq.tune(net, score, budget, candidates=list(map(only_first, CANDIDATES)))
    holding = [s for s in CANDIDATES if errors[s] <= limit]
    by_size = sorted(CANDIDATES, key=lambda s: expected_nbytes(SHAPE, s))
    if not holding:
        assert not result.passed
        assert len(result.trials) == len(CANDIDATES)
        return
    best = min(holding, key=by_size.index)
    assert result.passed
    assert result.schemes == only_first(best)
    assert result.loss == pytest.approx(errors[best], rel=1e-5)
    assert result.loss <= limit
    assert result.score == pytest.approx(1 - sign * errors[best])
    assert [t.schemes for t in result.trials] == [
        only_first(s) for s in by_size[: by_size.index(best) + 1]
    ]
    assert [t.held for t in result.trials] == [False] * by_size.index(best) + [True]


def test_the_result_is_the_model_that_was_measured() -> None:
    net = model()
    before = {key: value.clone() for key, value in net.state_dict().items()}
    score = Score(net, lambda error: 1 - error)
    result = vq.tune(net, score, vq.LossBudget(relative=0.05), candidates=CANDIDATES)
    assert result.passed
    assert result.baseline == 1.0
    assert score(result.model) == result.score
    assert result.loss == pytest.approx(1 - result.score)
    shown = vq.summary(result.model)
    float_bytes = 4 * sum(p.numel() for p in net.parameters())
    assert result.rate == pytest.approx(float_bytes / (shown.nbytes + shown.other_nbytes))
    again = vq.compress(net, result.schemes)  # type: ignore[arg-type]
    for key, value in again.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])
    for key, value in net.state_dict().items():
        assert torch.equal(value, before[key])
    assert result.stopped is None
    assert result.test_score is None
    assert all(t.error is None and t.seconds > 0 for t in result.trials)


def test_nothing_within_the_budget_gives_the_float_model_back() -> None:
    net = model()
    score = Score(net, lambda error: 1.0 if error == 0 else 0.5)
    result = vq.tune(net, score, candidates=CANDIDATES)
    assert not result.passed
    assert result.model is net
    assert result.schemes is None
    assert (result.score, result.loss, result.rate) == (1.0, 0.0, 1.0)
    assert len(result.trials) == len(CANDIDATES)
    assert not any(t.held for t in result.trials)
    assert result.stopped is not None
    assert "no setting holds" in result.stopped


def test_the_default_is_one_percent_of_the_baseline_and_the_ladder() -> None:
    net = model()
    result = vq.tune(net, Score(net, lambda error: 50 if error == 0 else 49.4))
    assert result.budget == vq.LossBudget(relative=0.01)
    assert len(result.trials) == len(LADDER)
    rates = [t.rate for t in result.trials]
    assert rates == sorted(rates, reverse=True)
    assert vq.tune(net, Score(net, lambda error: 50 if error == 0 else 49.6)).passed


@pytest.mark.parametrize("good", [True, False])
def test_the_test_split_gives_the_verdict(good: bool) -> None:
    net = model()
    tuning = Score(net, lambda error: 1 - error / 100)
    test = Score(net, lambda error: 0.8 - (0 if good else 0.1 * (error > 0)))
    result = vq.tune(net, tuning, vq.LossBudget(absolute=0.05), candidates=CANDIDATES, test=test)
    assert result.passed is good
    assert result.test_baseline == 0.8
    assert result.test_score == pytest.approx(0.8 if good else 0.7)
    assert result.test_loss == pytest.approx(0.0 if good else 0.1)
    # The float model and the one chosen: looking again and again would wear the split out.
    assert test.calls == 2
    if not good:
        assert result.model is net
        assert result.schemes is None
        assert "test split" in str(result.stopped)


@pytest.mark.parametrize("problem", ["raise", "nan", "inf", "none"])
def test_a_trial_that_fails_is_marked_and_the_search_goes_on(problem: str) -> None:
    net = model()
    score = Score(net, lambda error: 1 - error)

    def evaluate(candidate: nn.Module) -> float:
        if score.calls == 1:
            score.calls += 1
            match problem:
                case "raise":
                    raise RuntimeError("out of memory")
                case "none":
                    return None  # type: ignore[return-value]
            return float(problem)
        return score(candidate)

    result = vq.tune(net, evaluate, vq.LossBudget(relative=0.95), candidates=CANDIDATES)
    first, second = result.trials
    assert not first.held
    assert first.error
    assert math.isnan(first.score)
    assert math.isnan(first.loss)
    if problem == "raise":
        assert first.error == "RuntimeError: out of memory"
    assert second.held
    assert result.passed
    assert result.schemes == second.schemes


def test_a_fit_that_fails_is_marked_and_the_search_goes_on() -> None:
    net = model()
    with torch.no_grad():
        net[0].weight.mul_(1e9)  # type: ignore[index] # beyond half precision
    wide = vq.KM(k=256, codebook_dtype="float32")
    result = vq.tune(
        net, lambda _: 1.0, candidates=[{"0": vq.KM(k=4)}, {"0": wide}, {"0": vq.KM(k=2)}]
    )
    assert [t.held for t in result.trials] == [False, False, True]
    assert all("layer '0'" in str(t.error) for t in result.trials[:2])
    assert result.schemes == {"0": wide}


@pytest.mark.parametrize("score", [math.nan, math.inf])
@pytest.mark.parametrize("split", ["evaluate", "test"])
def test_a_baseline_that_is_no_number_is_an_error(score: float, split: str) -> None:
    splits: dict[str, Any] = {"evaluate": lambda _: 1.0, split: lambda _: score}
    with pytest.raises(ValueError, match=f"{split} returned {score} for the float model"):
        vq.tune(model(), **splits)


def test_an_evaluate_that_fails_on_the_float_model_is_the_users_error() -> None:
    def evaluate(_: nn.Module) -> float:
        raise OSError("no data")

    with pytest.raises(OSError, match="no data"):
        vq.tune(model(), evaluate)


def test_a_relative_budget_on_a_baseline_of_zero_is_an_error_before_any_fit() -> None:
    with pytest.raises(ValueError, match="use absolute="):
        vq.tune(model(), lambda _: 0.0)


def test_a_test_split_that_fails_on_the_choice_is_never_a_pass() -> None:
    net = model()
    for bad in (math.nan, math.inf, -math.inf):
        test = Score(net, lambda error, bad=bad: 1.0 if error == 0 else bad)  # type: ignore[misc]
        result = vq.tune(net, lambda _: 1.0, candidates=CANDIDATES, test=test)
        assert not result.passed
        assert result.model is net


def test_max_trials_says_what_it_cut_off() -> None:
    net = model()
    score = Score(net, lambda error: 1.0 if error == 0 else 0.0)
    result = vq.tune(net, score, candidates=CANDIDATES, max_trials=2)
    assert len(result.trials) == 2
    assert result.stopped == "max_trials=2 reached, 3 settings untried"
    assert not result.passed
    assert vq.tune(net, score, candidates=CANDIDATES, max_trials=5).stopped != result.stopped


def test_timeout_says_what_it_cut_off(monkeypatch: pytest.MonkeyPatch) -> None:
    net = model()
    now = [0.0]
    monkeypatch.setattr(search_module.time, "monotonic", lambda: now[0])

    def evaluate(candidate: nn.Module) -> float:
        now[0] += 10
        return 1.0 if candidate is net else 0.0

    result = vq.tune(net, evaluate, candidates=CANDIDATES, timeout=25)
    assert len(result.trials) == 3
    assert result.stopped == "timeout=25 s reached, 2 settings untried"
    assert not result.passed


@pytest.mark.parametrize("name", ["max_trials", "timeout"])
@pytest.mark.parametrize("value", [0, -1, math.nan])
def test_limits_must_be_positive(name: str, value: float) -> None:
    limits: dict[str, Any] = {name: value}
    with pytest.raises(ValueError, match=f"{name} must be above 0, got {value}"):
        vq.tune(model(), lambda _: 1.0, **limits)


def test_candidates_are_checked_before_any_work() -> None:
    def evaluate(_: nn.Module) -> float:
        raise AssertionError("ran")

    with pytest.raises(ValueError, match="candidates is empty"):
        vq.tune(model(), evaluate, candidates=[])
    with pytest.raises(ValueError, match="'fc' matches nothing"):
        vq.tune(model(), evaluate, candidates=[vq.KM(), {"fc": vq.KM()}])


def test_calibration_and_seed_reach_the_fits() -> None:
    net = model()
    data = [torch.randn(32, 64) * torch.logspace(-2, 1, 64)]
    result = vq.tune(net, lambda _: 1.0, calibration=data, candidates=[vq.PQ(k=8, dim=8)], seed=5)
    expected = vq.compress(net, vq.PQ(k=8, dim=8), data, seed=5)
    for key, value in expected.state_dict().items():
        assert torch.equal(value, result.model.state_dict()[key])


def test_a_tensor_is_a_score_too() -> None:
    result = vq.tune(model(), lambda _: torch.tensor(0.5), candidates=CANDIDATES)  # type: ignore[arg-type,return-value]
    assert result.passed
    assert isinstance(result.score, float)


def test_an_evaluate_that_switches_modes_leaves_the_input_model_alone() -> None:
    net = model().train()
    modes: list[bool] = []

    def evaluate(candidate: nn.Module) -> float:
        modes.append(candidate.training)
        return 1.0

    vq.tune(net, evaluate, candidates=CANDIDATES)
    assert modes == [True, True]
    assert net.training
