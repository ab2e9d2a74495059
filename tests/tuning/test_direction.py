"""A metric that is read the wrong way round is an error, however little a model is ruined."""

import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING

import numpy as np
import pytest
import torch
from sklearn.metrics import mean_squared_error
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.cli import main

if TYPE_CHECKING:
    from .conftest import Task

WRONG = "lower, say higher_is_better=False"
Judged = Callable[[Tensor, Tensor], object]


def cross_entropy(outputs: Tensor, labels: Tensor) -> float:
    return functional.cross_entropy(outputs / 64, labels).item()


def cross_entropies(outputs: Tensor, labels: Tensor) -> Tensor:
    return functional.cross_entropy(outputs / 64, labels, reduction="none")


def perplexity(outputs: Tensor, labels: Tensor) -> float:
    return float(np.exp(cross_entropy(outputs, labels)))


def error_rate(outputs: Tensor, labels: Tensor) -> float:
    return float((outputs.argmax(1) != labels).double().mean())


def squared_error(outputs: Tensor, labels: Tensor) -> float:
    return mean_squared_error(functional.one_hot(labels, 5), (outputs / 16).softmax(1))


def whole(model: nn.Module, inputs: Tensor) -> Tensor:
    return model(inputs)


def in_batches(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(batch) for batch in inputs.split(48)])


def one_by_one(model: nn.Module, inputs: Tensor) -> Tensor:
    return torch.cat([model(one[None]) for one in inputs])


def by_its_layers(model: nn.Module, inputs: Tensor) -> Tensor:
    for layer in model.children():
        inputs = layer(inputs)
    return inputs


def evaluation(
    task: "Task", judged: Judged, run: Callable[[nn.Module, Tensor], Tensor] = whole
) -> Callable[[nn.Module], object]:
    """Of data sorted by class, as they often are; a fifth of the labels are others."""
    labels = task.labels.clone()
    labels[::5] = (labels[::5] + 1) % 5
    order = labels.argsort()

    def evaluate(model: nn.Module) -> object:
        with torch.no_grad():
            return judged(run(model, task.inputs[order]), labels[order])

    return evaluate


@pytest.mark.parametrize(
    ("judged", "schemes"),
    [
        (cross_entropy, [vq.KM(k=6)]),
        (cross_entropy, [vq.KM(k=10), vq.KM(k=16), vq.KM(k=32)]),
        (cross_entropies, [vq.KM(k=6), vq.KM(k=16)]),
        (perplexity, [vq.KM(k=10), vq.KM(k=16)]),
        (error_rate, [vq.KM(k=10)]),
        (squared_error, [vq.KM(k=10), vq.KM(k=16)]),
    ],
)
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.filterwarnings("ignore:no calibration data")
def test_a_model_that_is_hardly_ruined(
    task: "Task", judged: Judged, schemes: list[vq.KM], calibrated: bool
) -> None:
    batches = [task.inputs[:100]] if calibrated else None
    evaluate = evaluation(task, judged)
    small = vq.compress(task.model, schemes[0], batches)
    floats, coded = (float(np.mean(np.asarray(evaluate(m)))) for m in (task.model, small))
    # What no other look at the metric finds.
    assert 1.005 * floats < coded < 4 / 3 * floats
    budgets = [vq.LossBudget(relative=0.005), vq.LossBudget(absolute=0.005 * floats)]
    # Of more than 2, so little looks as if it were meant of percents.
    for budget in budgets[: 2 if floats < 2 else 1]:
        with pytest.raises(ValueError, match=WRONG):
            vq.tune(task.model, evaluate, budget, batches, candidates=schemes)


@pytest.mark.parametrize("run", [whole, in_batches, one_by_one, by_its_layers])
def test_however_evaluate_runs_the_model(
    task: "Task", run: Callable[[nn.Module, Tensor], Tensor]
) -> None:
    budget = vq.LossBudget(relative=0.005)
    with pytest.raises(ValueError, match=WRONG):
        vq.tune(
            task.model,
            evaluation(task, cross_entropy, run),
            budget,
            [task.inputs[:100]],
            candidates=vq.KM(k=10),
        )


@dataclass
class Scored:
    loss: Tensor


class Language(nn.Module):
    """Gives a loss and nothing else, as language models do that are given labels."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, inputs: Tensor, labels: Tensor) -> Scored:
        return Scored(functional.cross_entropy(self.inner(inputs) / 64, labels))


def test_a_model_that_gives_its_own_loss(task: "Task") -> None:
    labels = task.labels.clone()
    labels[::5] = (labels[::5] + 1) % 5

    def evaluate(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return model(task.inputs, labels).loss.exp()

    batches = [(task.inputs[:100], labels[:100])]
    with pytest.raises(ValueError, match=WRONG):
        vq.tune(
            Language(task.model),
            evaluate,
            vq.LossBudget(relative=0.005),
            batches,
            candidates=vq.KM(k=10),
        )


def test_the_other_way_round(task: "Task") -> None:
    budget = vq.LossBudget(relative=0.005, higher_is_better=False)
    with pytest.raises(ValueError, match="higher, say higher_is_better=True"):
        vq.tune(
            task.model,
            lambda model: 2 + task.accuracy(model),
            budget,
            [task.inputs[:100]],
            candidates=vq.KM(k=10),
        )


def poor(noise: float, scale: float) -> nn.Module:
    """Small weights drown the large ones, which alone are right; two centers make them equal."""
    layer = nn.Linear(64, 4)
    with torch.no_grad():
        layer.weight.copy_(noise * torch.randn(4, 64, generator=torch.Generator().manual_seed(0)))
        layer.weight[:, :4] += 8 * torch.eye(4)
        layer.bias.zero_()
        layer.weight.mul_(scale)
    return layer


@pytest.mark.parametrize("noise", [0.7, 1.0, 1.1])
@pytest.mark.parametrize("scale", [0.2, 1.0])
@pytest.mark.parametrize("calibrated", [True, False])
@pytest.mark.filterwarnings("ignore:no calibration data")
def test_a_poor_model_may_gain_a_lot(noise: float, scale: float, calibrated: bool) -> None:
    """Also where its cross-entropy is worse than that of an answer that knows nothing."""
    model = poor(noise, scale)
    inputs = torch.randn(400, 64, generator=torch.Generator().manual_seed(1))
    labels = inputs[:, :4].argmax(1)

    def accuracy(m: nn.Module) -> Tensor:
        with torch.no_grad():
            return m(inputs).argmax(1) == labels

    def entropy(m: nn.Module) -> float:
        with torch.no_grad():
            return functional.cross_entropy(m(inputs), labels).item()

    batches = [inputs[:50]] if calibrated else None
    for evaluate, higher in ((accuracy, True), (entropy, False)):
        budget = vq.LossBudget(relative=0.01, higher_is_better=higher)
        result = vq.tune(model, evaluate, budget, batches, candidates=vq.KM(k=2))
        assert result.passed
        assert result.loss < -0.02


RECIPE = """\
version: 1
model: wrong_way:model
quantization:
  calibration: wrong_way:batches
  model_wise: {scheme: km(k=10)}
evaluation: {tuning: "wrong_way:evaluate"}
tuning: {accuracy_criterion: {relative: 0.005}}
output: out
"""


def test_a_recipe_says_which_key(
    task: "Task",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    functions = SimpleNamespace(
        model=lambda: task.model,
        batches=lambda: [task.inputs[:100]],
        evaluate=evaluation(task, cross_entropy),
    )
    monkeypatch.setitem(sys.modules, "wrong_way", functions)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE)
    assert main(["tune", "recipe.yaml", "-q"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("vq-plugin: recipe.yaml:6: evaluation.tuning: by evaluate a compressed")
    assert "set tuning.accuracy_criterion.higher_is_better: false; otherwise" in shown


def test_what_shuffled_models_gave_is_in_the_journal(task: "Task", tmp_path: Path) -> None:
    evaluate, calls = evaluation(task, cross_entropy), []

    def counted(model: nn.Module) -> object:
        calls.append(model)
        return evaluate(model)

    def run() -> str:
        with pytest.raises(ValueError, match=WRONG) as error:
            vq.tune(
                task.model, counted, vq.LossBudget(relative=0.005), [task.inputs[:100]],
                candidates=vq.KM(k=10), folder=tmp_path,
            )  # fmt: skip
        return str(error.value)

    first = run()
    # The float model twice, one setting, seven shuffles.
    assert len(calls) == 10
    assert run() == first
    assert len(calls) == 10


def test_an_honest_gain_takes_one_evaluation_more(task: "Task") -> None:
    calls = []

    def evaluate(model: nn.Module) -> float:
        calls.append(model)
        return task.accuracy(model) + 0.1 * (not task.is_float(model))

    result = vq.tune(
        task.model, evaluate, calibration=[task.inputs[:100]], candidates=vq.KM(k=64), max_trials=1
    )
    assert result.passed
    assert len(result.trials) == 1
    assert len(calls) == 4
