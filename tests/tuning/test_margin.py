"""Part of the budget is left for the test split where no confidence says how much chance can do."""

from typing import TYPE_CHECKING, Any

import pytest
from torch import nn

import vq_plugin as vq

if TYPE_CHECKING:
    from .conftest import Task

LADDER = [vq.KM(k=3), vq.KM(k=16), vq.KM(k=128)]


class Lucky:
    """A metric that loses less on the tuning split than on the test split."""

    def __init__(self, task: "Task") -> None:
        self.task = task
        self.float = task.model(task.inputs).detach()

    def tuning(self, model: nn.Module, part: float = 1.0) -> float:
        outputs = model(self.task.inputs).detach()
        lost = float((outputs - self.float).norm() / self.float.norm())
        return 1 - part * lost

    def test(self, model: nn.Module) -> float:
        return self.tuning(model, 1.5)

    def loss(self, scheme: vq.Scheme) -> float:
        small = vq.compress(self.task.model, scheme, self.task.settings["calibration"])
        return 1 - self.tuning(small)


@pytest.mark.parametrize("kind", ["relative", "absolute"])
def test_a_margin_is_left_for_the_test_split(task: "Task", kind: str) -> None:
    lucky = Lucky(task)
    limit = 1.2 * lucky.loss(LADDER[1])
    candidates = {"*": LADDER}
    settings: dict[str, Any] = {**task.settings, "candidates": candidates, "test": lucky.test}
    bare = vq.tune(task.model, lucky.tuning, vq.LossBudget(**{kind: limit}), **settings)
    assert not bare.passed
    assert "or set a margin" in str(bare.stopped)

    budget = vq.LossBudget(**{kind: limit}, margin=0.4)
    result = vq.tune(task.model, lucky.tuning, budget, **settings)
    assert result.passed
    assert result.loss <= 0.6 * limit < result.test_loss <= limit
    assert result.budget == budget
    assert result.rate < max(trial.rate for trial in result.trials if trial.loss <= limit)


def test_what_is_within_the_budget_and_not_by_its_margin_is_not_reached(task: "Task") -> None:
    lucky = Lucky(task)
    budget = vq.LossBudget(relative=1.2 * lucky.loss(LADDER[0]), margin=0.9)
    settings = {**task.settings, "candidates": LADDER[0]}
    result = vq.tune(task.model, lucky.tuning, budget, **settings)
    assert not result.passed
    assert result.stopped == "losses are within the budget, but not by its margin"


@pytest.mark.parametrize("margin", [-0.1, 1, 1.5, True, float("nan")])
def test_a_margin_is_a_part_of_the_limit(margin: float) -> None:
    with pytest.raises(ValueError, match="from 0 and below 1"):
        vq.LossBudget(relative=0.01, margin=margin)


def test_a_confidence_finds_its_margin_by_itself() -> None:
    with pytest.raises(ValueError, match="give confidence or margin"):
        vq.LossBudget(relative=0.01, confidence=0.95, margin=0.5)
