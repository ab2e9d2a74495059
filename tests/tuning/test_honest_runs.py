"""No false alarm: honest searches, by metrics and budgets as people have them, end in a verdict."""

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from sklearn.metrics import cohen_kappa_score, f1_score, r2_score
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.tuning.direction import Direction
from vq_plugin.tuning.metric import read_metric
from vq_plugin.tuning.probe import Probe

RUNS = 200
Metric = Callable[[Tensor, Tensor], object]


def right(outputs: Tensor, labels: Tensor) -> Tensor:
    return outputs.argmax(1) == labels


def cross_entropy(outputs: Tensor, labels: Tensor) -> float:
    return functional.cross_entropy(4 * outputs, labels).item()


def squared_error(outputs: Tensor, labels: Tensor) -> float:
    return (outputs - functional.one_hot(labels, outputs.shape[1])).square().mean().item()


def squared_errors(outputs: Tensor, labels: Tensor) -> Tensor:
    return (outputs - functional.one_hot(labels, outputs.shape[1])).square().mean(1)


HONEST: tuple[tuple[Metric, vq.LossBudget], ...] = (
    (right, vq.LossBudget(relative=0.02)),
    (right, vq.LossBudget(absolute=0.05, confidence=0.9)),
    (lambda o, t: 100 * right(o, t).double().mean(), vq.LossBudget(absolute=2)),
    (lambda o, t: 1 - right(o, t).double().mean(), vq.LossBudget(0.3, higher_is_better=False)),
    (cross_entropy, vq.LossBudget(absolute=0.05, higher_is_better=False)),
    (cross_entropy, vq.LossBudget(relative=0.05, higher_is_better=False)),
    (lambda o, t: -cross_entropy(o, t), vq.LossBudget(absolute=0.05)),
    (squared_error, vq.LossBudget(relative=0.05, higher_is_better=False)),
    (squared_errors, vq.LossBudget(relative=0.2, higher_is_better=False, confidence=0.9)),
    (lambda o, t: cohen_kappa_score(t, o.argmax(1)), vq.LossBudget(absolute=0.03)),
    (lambda o, t: f1_score(t, o.argmax(1), average="macro"), vq.LossBudget(relative=0.05)),
    (lambda o, t: r2_score(functional.one_hot(t, o.shape[1]), o), vq.LossBudget(absolute=0.03)),
)


def fitted(seed: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network that is fitted to noisy labels, other inputs, and theirs."""
    generator = torch.Generator().manual_seed(seed)
    classes, noise = 2 + seed % 4, 0.1 * (1 + seed % 5)
    model = nn.Sequential(nn.Linear(8, 24), nn.ReLU(), nn.Linear(24, classes))
    inputs, truth = (torch.randn(size, generator=generator) for size in ((600, 8), (8, classes)))
    noisy = inputs @ truth + noise * torch.randn(600, classes, generator=generator)
    labels = noisy.argmax(1)
    with torch.no_grad():
        for value in model[0].parameters():
            value.copy_(torch.randn(value.shape, generator=generator))
        hidden = functional.pad(model[1](model[0](inputs[:400])), (0, 1), value=1.0)
        targets = functional.one_hot(labels[:400], classes).float()
        solved = torch.linalg.lstsq(hidden, targets).solution
        model[2].weight.copy_(solved[:-1].T)
        model[2].bias.copy_(solved[-1])
    return model, inputs[400:], labels[400:]


@pytest.mark.filterwarnings("ignore:no calibration data")
def test_honest_runs_end_in_a_verdict() -> None:
    passed = 0
    for seed in range(RUNS):
        metric, budget = HONEST[seed % len(HONEST)]
        model, inputs, labels = fitted(seed)

        def evaluate(model: nn.Module) -> object:
            with torch.no_grad():
                return metric(model(inputs), labels)  # noqa: B023

        candidates = [vq.KM(k=8), vq.KM(k=64)]
        batches = None if seed % 6 else [inputs[:16]]
        # What is a false alarm raises.
        result = vq.tune(model, evaluate, budget, batches, candidates=candidates, max_trials=2)
        assert "evaluate does not see" not in str(result.stopped), (seed, result.stopped)
        passed += result.passed
    assert passed > 0.8 * RUNS


def test_the_direction_of_honest_runs_is_right_and_the_other_is_not() -> None:
    """Whatever compression may have gained: the verdict asks only where that is more than noise."""
    for seed in range(RUNS):
        metric, budget = HONEST[seed % len(HONEST)]
        model, inputs, labels = fitted(seed)

        def measure(what: str, make: Callable[[], nn.Module]) -> float:
            with torch.no_grad():
                return read_metric(metric(make()(inputs), labels), what).mean  # noqa: B023

        baseline = measure("float", lambda: model)  # noqa: B023
        other = replace(budget, higher_is_better=not budget.higher_is_better)
        assert Direction(Probe(model, budget, baseline, measure)).better == [], seed
        assert Direction(Probe(model, other, baseline, measure)).better, seed


def test_a_model_that_is_as_good_as_chance_rarely_alarms() -> None:
    """Of 200 where a search has found a gain, as they all do sooner or later."""
    alarms = 0
    for seed in range(RUNS):
        generator = torch.Generator().manual_seed(seed)
        model, inputs = nn.Linear(8, 4), torch.randn(300, 8, generator=generator)
        with torch.no_grad():
            model.weight.copy_(torch.randn(4, 8, generator=generator))
        labels = torch.randint(4, (300,), generator=generator)

        def measure(_: str, make: Callable[[], nn.Module]) -> float:
            with torch.no_grad():
                return float(right(make()(inputs), labels).double().mean())  # noqa: B023

        baseline = measure("float", lambda: model)  # noqa: B023
        probe = Probe(model, vq.LossBudget(0.01), baseline, measure)
        alarms += bool(Direction(probe).better)
    assert alarms <= 0.05 * RUNS
