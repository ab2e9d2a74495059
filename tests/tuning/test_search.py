"""``tune``: the smallest model that holds the budget, and never one over it."""

import math
from collections.abc import Callable
from typing import TYPE_CHECKING

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

import vq_plugin as vq
from vq_plugin.workloads import digits

if TYPE_CHECKING:
    from .conftest import Task

BUDGET = vq.LossBudget(absolute=0.1)


def same_state(first: nn.Module, second: nn.Module) -> bool:
    a, b = first.state_dict(), second.state_dict()
    return a.keys() == b.keys() and all(
        torch.equal(a[key], b[key]) and a[key].dtype == b[key].dtype for key in a
    )


def size(model: nn.Module) -> int:
    shown = vq.summary(model)
    return shown.file_nbytes + shown.other_nbytes


def test_the_result_is_a_model_that_was_evaluated_and_can_be_made_again(task: "Task") -> None:
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    result = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, seed=3)
    assert result.passed
    assert result.schemes is not None
    assert (result.baseline, result.stopped, result.resumed) == (1.0, None, 0)
    assert result.loss <= 0.1
    assert result.score == task.accuracy(result.model)
    assert result.loss == pytest.approx(1 - result.score)
    chosen = [t for t in result.trials if t.schemes == result.schemes]
    assert [(t.score, t.loss, t.rate, t.held) for t in chosen] == [
        (result.score, result.loss, result.rate, True)
    ]
    again = vq.compress(task.model, result.schemes, task.settings["calibration"], seed=3)  # type: ignore[arg-type]
    assert same_state(again, result.model)
    # The input model is left alone.
    assert all(torch.equal(v, before[key]) for key, v in task.model.state_dict().items())


def test_the_first_try_is_no_worse_than_a_preset() -> None:
    model, calibration = digits.model(), digits.calibration()
    small = vq.compress(model, "auto", calibration)
    budget = vq.LossBudget(relative=0.01)
    assert budget.holds(digits.evaluate(model), digits.evaluate(small))
    result = vq.tune(model, digits.evaluate, budget, calibration, max_trials=1)
    assert result.passed
    assert result.trials[0].nbytes <= vq.summary(small).model_file_nbytes


def test_equal_steps_by_what_outputs_feel_can_be_made_again(task: "Task") -> None:
    ladder = [vq.Uniform(step, scale="row") for step in (0.1, 0.2, 0.4, 0.8, 1.6)]
    calibration = task.settings["calibration"]
    result = vq.tune(task.model, task.accuracy, BUDGET, calibration, candidates=ladder)
    assert result.passed
    assert result.schemes is not None
    again = vq.compress(task.model, result.schemes, calibration)
    assert same_state(again, result.model)
    without = vq.compress(task.model, result.schemes)
    assert not same_state(without, result.model)


def test_trials_tell_the_truth(task: "Task") -> None:
    result = vq.tune(task.model, task.accuracy, BUDGET, **task.settings)
    float_nbytes = 4 * sum(p.numel() for p in task.model.parameters())
    assert len(result.trials) > 5
    for trial in result.trials:
        small = vq.compress(task.model, trial.schemes, task.settings["calibration"])  # type: ignore[arg-type]
        assert trial.nbytes == size(small)
        assert trial.rate == float_nbytes / trial.nbytes
        assert trial.score == task.accuracy(small)
        assert trial.held == (trial.loss <= 0.1)
        assert trial.error is None
        assert trial.interval is None
        assert trial.seconds > 0
    assert len({tuple(t.schemes.items()) for t in result.trials}) == len(result.trials)
    phases = [t.phase for t in result.trials]
    assert phases == sorted(phases)  # frontier, then local
    smallest = min((t for t in result.trials if t.held), key=lambda t: t.nbytes)
    assert result.rate == smallest.rate
    # The frontier is in bytes of the whole model, like the trials.
    points = {p.nbytes for p in result.frontier}
    assert all(t.nbytes in points for t in result.trials if t.phase == "frontier")
    assert [layer.name for layer in result.layers] == ["0", "2", "4"]


@settings(max_examples=8, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    limit=st.floats(0.002, 0.9), relative=st.booleans(), lower=st.booleans(), most=st.integers(1, 9)
)
def test_it_is_never_over_the_budget(
    task: "Task", limit: float, relative: bool, lower: bool, most: int
) -> None:
    budget = vq.LossBudget(
        relative=limit if relative else None,
        absolute=None if relative else limit,
        higher_is_better=not lower,
        min_agreement=None,
    )
    evaluate = task.error if lower else task.accuracy
    result = vq.tune(task.model, evaluate, budget, **task.settings, max_trials=most)
    assert len(result.trials) <= most
    score = evaluate(result.model)
    assert score == result.score
    assert budget.holds(result.baseline, score)
    assert result.passed == any(t.held for t in result.trials)
    assert (result.stopped is None) == result.passed
    if not result.passed:
        assert result.model is task.model


def test_nothing_within_the_budget_gives_the_float_model_itself(task: "Task") -> None:
    def evaluate(model: nn.Module) -> float:
        return 1.0 if task.is_float(model) else 0.5

    candidates = [s for s in task.settings["candidates"] if s is not None]
    result = vq.tune(task.model, evaluate, None, [task.inputs], candidates=candidates)
    assert result.budget == vq.LossBudget(relative=0.01)
    assert not result.passed
    assert result.model is task.model
    assert result.schemes is None
    assert (result.score, result.loss, result.rate, result.interval) == (1.0, 0.0, 1.0, None)
    assert not any(t.held for t in result.trials)
    assert result.stopped == "no setting of the frontier holds the budget on the tuning split"
    assert result.cut is None


def test_the_float_model_is_no_answer_and_is_not_evaluated_again(task: "Task") -> None:
    calls: list[nn.Module] = []

    def only_float(model: nn.Module) -> float:
        calls.append(model)
        return 1.0 if task.is_float(model) else 0.0

    result = vq.tune(task.model, only_float, max_trials=100, **task.settings)
    assert not result.passed
    assert result.model is task.model
    assert all(any(trial.schemes.values()) for trial in result.trials)
    # The float model twice, at the start: does the metric say so again?
    assert len(calls) == 2 + len(result.trials)


def test_one_result_per_sample_gives_intervals(task: "Task") -> None:
    sure = vq.tune(task.model, task.correct, BUDGET, **task.settings)
    mean = vq.tune(task.model, task.accuracy, BUDGET, **task.settings)
    assert sure.schemes == mean.schemes
    assert sure.interval is not None
    assert sure.interval[0] < sure.loss < sure.interval[1]
    assert all(t.interval is not None for t in sure.trials)
    assert (mean.interval, mean.test_interval) == (None, None)


def test_a_confidence_asks_for_more_than_the_mean(task: "Task") -> None:
    data, scheme = task.settings["calibration"], vq.KM(k=16)
    loss = 1 - task.accuracy(vq.compress(task.model, scheme, data))
    assert 0 < loss < 0.1
    for limit, confidence, passed in (
        (loss + 0.001, None, True),
        (loss + 0.001, 0.95, False),
        (loss + 0.1, 0.95, True),
    ):
        budget = vq.LossBudget(absolute=limit, confidence=confidence)
        result = vq.tune(task.model, task.correct, budget, data, candidates=scheme)
        assert result.passed is passed
        assert result.trials[0].loss == pytest.approx(loss)
        assert result.trials[0].held is passed
    with pytest.raises(ValueError, match="let evaluate return a vector"):
        vq.tune(task.model, task.accuracy, budget, data, candidates=scheme)


class Counted:
    """An evaluate that counts its calls and knows what it returns for compressed models."""

    def __init__(self, task: "Task", compressed: object) -> None:
        self.task, self.compressed = task, compressed
        self.models: list[nn.Module] = []

    def __call__(self, model: nn.Module) -> object:
        self.models.append(model)
        if self.task.is_float(model):
            return 0.8
        if isinstance(self.compressed, Exception):
            raise self.compressed
        return self.compressed


@pytest.mark.parametrize(
    ("on_test", "why"),
    [
        (0.75, None),
        (0.6, "test split, which decides"),
        (math.nan, "evaluation on the test split failed: test returned nan"),
        (RuntimeError("no data"), "no data"),
        (None, "test returned None"),
    ],
)
def test_the_test_split_decides(task: "Task", on_test: object, why: str | None) -> None:
    test = Counted(task, on_test)
    result = vq.tune(task.model, task.accuracy, BUDGET, **task.settings, test=test)
    # The float model and the one chosen: looking again and again would wear the split out.
    assert len(test.models) == 2
    chosen = min((t for t in result.trials if t.held), key=lambda t: t.nbytes)
    assert size(test.models[1]) == chosen.nbytes
    assert result.test_baseline == 0.8
    assert result.passed == (why is None)
    if isinstance(on_test, float) and math.isfinite(on_test):
        assert result.test_score == on_test
        assert result.test_loss == pytest.approx(0.8 - on_test)
    else:
        assert (result.test_score, result.test_loss) == (None, None)
    if why is not None:
        assert why in str(result.stopped)
        assert result.model is task.model
        assert (result.schemes, result.rate) == (None, 1.0)


def test_splits_of_one_function_are_told_apart(task: "Task") -> None:
    """Nor does a journal that both share mistake one for the other."""

    def over(part: slice) -> Callable[[nn.Module], float]:
        return lambda model: float(task.correct(model)[part].double().mean() - part.start / 1000)

    wide, test = vq.LossBudget(absolute=0.2), over(slice(400, 500))
    result = vq.tune(task.model, over(slice(0, 400)), wide, **task.settings, test=test)
    assert result.passed
    assert (result.baseline, result.test_baseline) == (1.0, 0.6)
    assert result.test_score == test(result.model) < 0.6


def test_a_layer_can_be_fixed_or_left(task: "Task") -> None:
    candidates = {"0": vq.KM(k=8), "2": None, "4": [vq.KM(k=4), vq.KM(k=64)]}
    result = vq.tune(task.model, task.accuracy, BUDGET, [task.inputs], candidates=candidates)
    assert result.schemes is not None
    for trial in result.trials:
        assert (trial.schemes["0"], trial.schemes["2"]) == (vq.KM(k=8), None)
    assert isinstance(result.model[2], nn.Linear)  # type: ignore[index]
    again = vq.compress(task.model, result.schemes, [task.inputs])  # type: ignore[arg-type]
    assert same_state(again, result.model)


class Reader(nn.Module):
    """Reads the weight of one layer without running it, and another layer's twice."""

    def __init__(self, tie: bool) -> None:
        super().__init__()
        self.embed, self.read = nn.Embedding(40, 12), nn.Linear(12, 12)
        self.out = nn.Linear(12, 40, bias=False)
        if tie:
            self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(nn.functional.linear(self.embed(index), self.read.weight))


@pytest.mark.parametrize("tie", [True, False])
def test_shared_weights_and_layers_out_of_reach(tie: bool) -> None:
    model, index = Reader(tie), torch.arange(40)
    with torch.no_grad():
        labels = model(index).argmax(1)
    result = vq.tune(
        model,
        lambda m: m(index).argmax(1) == labels,
        vq.LossBudget(absolute=0.3),
        [index],
        candidates={"read": None, "*": [vq.KM(k=2), vq.KM(k=4), vq.KM(k=16), None]},
    )
    assert result.passed
    assert result.schemes is not None
    assert set(result.schemes) == {"embed", "read", "out"}
    assert result.schemes["read"] is None
    assert not tie or result.schemes["embed"] == result.schemes["out"]
    again = vq.compress(model, result.schemes, [index])  # type: ignore[arg-type]
    assert same_state(again, result.model)
    assert result.rate == 4 * sum(p.numel() for p in model.parameters()) / size(result.model)


def test_a_pruned_layer(task: "Task") -> None:
    """Its weight is in parts, and its hooks would bring the float weight back."""
    prune.l1_unstructured(task.model[2], "weight", 0.3)  # type: ignore[index]
    float_score = task.accuracy(task.model)
    candidates = [vq.KM(k=4), vq.KM(k=16), vq.KM(k=64)]
    result = vq.tune(task.model, task.accuracy, BUDGET, [task.inputs], candidates=candidates)
    assert result.passed
    assert result.baseline == float_score
    best = min((t for t in result.trials if t.held), key=lambda t: t.nbytes)
    assert size(result.model) == best.nbytes
    assert all(c.harm > 0 for layer in result.layers for c in layer.candidates)


def test_without_calibration_it_warns_and_still_holds_the_budget(task: "Task") -> None:
    candidates = task.settings["candidates"]
    with pytest.warns(UserWarning, match="no calibration data.*calibration="):
        result = vq.tune(task.model, task.accuracy, BUDGET, candidates=candidates)
    assert result.passed
    assert result.loss <= 0.1
    assert all(c.harm == c.error for layer in result.layers for c in layer.candidates)


def test_a_model_in_training_mode_stays_so(task: "Task") -> None:
    task.model.train()
    modes: list[bool] = []

    def evaluate(model: nn.Module) -> float:
        modes.append(model.training)
        return task.accuracy(model)

    result = vq.tune(task.model, evaluate, BUDGET, **task.settings, max_trials=2)
    # Twice in float, two trials, and what is ruined where the smaller agrees to less than 0.9.
    assert modes == [True] * 5
    assert task.model.training
    assert result.model.training
