"""A ruined model does not pass, whatever its metric says."""

from collections.abc import Callable
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.metrics import cohen_kappa_score
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.tuning.agreement import Agreement

if TYPE_CHECKING:
    from .conftest import Task

LADDER = [vq.KM(k=1), vq.KM(k=2), vq.KM(k=16)]


def cross_entropy(task: "Task") -> Callable[[nn.Module], float]:
    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return float(functional.cross_entropy(model(task.inputs), task.labels))

    return evaluate


@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.parametrize("budget", [vq.LossBudget(relative=0.01), vq.LossBudget(absolute=0.001)])
@pytest.mark.filterwarnings("ignore:no calibration data")
def test_a_metric_the_wrong_way_round_is_an_error(
    task: "Task", budget: vq.LossBudget, calibrated: bool
) -> None:
    batches = [task.inputs[:100]] if calibrated else None
    with pytest.raises(ValueError, match="lower, say higher_is_better=False"):
        vq.tune(task.model, cross_entropy(task), budget, batches, candidates=LADDER)
    right = vq.LossBudget(absolute=0.5, higher_is_better=False)
    assert vq.tune(task.model, cross_entropy(task), right, batches, candidates=vq.KM(k=64)).passed


def test_an_error_rate_taken_for_an_accuracy_is_an_error_above_the_floor_too(task: "Task") -> None:
    batches = [task.inputs[:100]]

    def error_rate(model: nn.Module) -> float:
        return 1.01 - float(task.correct(model).double().mean())

    found = Agreement(task.model, batches)(vq.compress(task.model, vq.KM(k=2), batches))
    assert found is not None
    assert 0.2 < found < 0.9
    for budget in (vq.LossBudget(relative=0.1), vq.LossBudget(absolute=0.002)):
        with pytest.raises(ValueError, match="lower, say higher_is_better=False"):
            vq.tune(task.model, error_rate, budget, batches, candidates=vq.KM(k=2))


def test_a_metric_that_sees_nothing_does_not_pass_a_ruined_model(task: "Task") -> None:
    batches = [task.inputs[:100]]
    result = vq.tune(task.model, lambda _: 1.0, calibration=batches, candidates=vq.KM(k=1))
    assert not result.passed
    assert result.agreement is not None
    assert result.agreement < 0.2
    assert "evaluate does not see what compression has done" in str(result.stopped)
    off = vq.LossBudget(relative=0.01, min_agreement=None)
    result = vq.tune(task.model, lambda _: 1.0, off, batches, candidates=vq.KM(k=1))
    assert result.passed
    assert result.agreement is not None
    with pytest.raises(ValueError, match=r"min_agreement=0.9 needs calibration data"):
        vq.tune(task.model, lambda _: 1.0, vq.LossBudget(relative=0.1, min_agreement=0.9))


def test_a_metric_that_changes_by_itself_is_an_error(task: "Task") -> None:
    generator = torch.Generator().manual_seed(0)

    def evaluate(model: nn.Module) -> Tensor:
        some = torch.randint(500, (50,), generator=generator)
        return task.correct(model)[some].double() * torch.rand(50, generator=generator)

    with pytest.raises(ValueError, match="when it is called again: a loss cannot be told from"):
        vq.tune(task.model, evaluate, **task.settings)


def test_classes_and_logits_are_no_metric(task: "Task") -> None:
    with pytest.raises(ValueError, match="whole numbers from 0 to 4, which look like classes"):
        vq.tune(task.model, lambda model: model(task.inputs).argmax(1), **task.settings)
    for kind in (list, np.array):
        with pytest.raises(ValueError, match="which look like classes"):
            vq.tune(task.model, lambda m: kind(m(task.inputs).argmax(1).tolist()), **task.settings)  # noqa: B023
    with pytest.raises(ValueError, match=r"values of shape \(500, 5\)"):
        vq.tune(task.model, lambda model: model(task.inputs), **task.settings)


@pytest.mark.parametrize(
    ("limit", "scale", "remedy"), [(1.0, 1, "absolute=0.01"), (0.01, 100, "absolute=1")]
)
def test_a_budget_in_another_unit_than_the_metric_is_an_error(
    task: "Task", limit: float, scale: int, remedy: str
) -> None:
    budget = vq.LossBudget(absolute=limit)
    with pytest.raises(ValueError, match=f"one point is {remedy}"):
        vq.tune(task.model, lambda model: scale * task.accuracy(model), budget, **task.settings)


def test_honest_runs_agree_and_pass() -> None:
    """No false alarm among 200 small models, of decisions and of values."""
    for seed in range(200):
        generator = torch.Generator().manual_seed(seed)
        outputs = 1 + seed % 4
        model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), nn.Linear(16, outputs))
        with torch.no_grad():
            for value in model.parameters():
                value.copy_(torch.randn(value.shape, generator=generator))
        x = torch.randn(100, 16, generator=generator)
        small = vq.compress(model, vq.KM(k=4 + seed % 13))
        found = Agreement(model, [x])(small)
        assert found is not None
        assert found > 0.5, (seed, found)


def test_decisions_count_beyond_chance() -> None:
    """Against scikit-learn's kappa."""
    generator = torch.Generator().manual_seed(0)
    one, other = (nn.Linear(6, 3) for _ in range(2))
    with torch.no_grad():
        for layer in (one, other):
            layer.weight.copy_(torch.randn(3, 6, generator=generator))
    x = torch.randn(400, 6, generator=generator)
    expected, found = (layer(x).argmax(1).tolist() for layer in (one, other))
    assert Agreement(one, [x])(other) == pytest.approx(
        max(0.0, cohen_kappa_score(expected, found)), abs=1e-12
    )


def test_agreement_of_outputs_of_many_kinds() -> None:
    class Several(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.two = nn.Linear(8, 3), nn.Linear(8, 1)

        def forward(self, x: Tensor) -> dict[str, object]:
            return {"scores": self.one(x), "more": (self.two(x), x.long())}

    model, batches = Several(), [torch.randn(5, 8), torch.randn(3, 8)]
    agreement = Agreement(model, batches)
    assert agreement(model) == 1.0
    broken = Several()
    nn.init.constant_(broken.one.weight, float("nan"))
    broken.two = model.two
    assert agreement(broken) == 0.5
    assert Agreement(model, [])(model) is None
