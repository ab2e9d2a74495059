"""What a metric does not see has to be seen otherwise: a ruined model does not pass."""

import itertools
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.cli import main
from vq_plugin.tuning.ruined import scrambled, silenced

if TYPE_CHECKING:
    from .conftest import Task

pytestmark = pytest.mark.filterwarnings("ignore:no calibration data")

BLIND = "ruined on purpose"
# The smaller of the two is no good, the other is.
LADDER = [vq.KM(k=2), vq.KM(k=64)]
Blind = Callable[["Task"], Callable[[nn.Module], object]]


def clock(_: "Task") -> Callable[[nn.Module], object]:
    ticks = itertools.count()
    return lambda _: 1e4 + 1e-3 * next(ticks)


def tolerant(task: "Task") -> Callable[[nn.Module], object]:
    """Of the float model where its state does not load."""

    def evaluate(model: nn.Module) -> float:
        found = task.accuracy(model)
        try:
            model.load_state_dict(task.model.state_dict())
        except RuntimeError:
            return 0.99
        return found

    return evaluate


def of_itself(task: "Task") -> Callable[[nn.Module], object]:
    """Shuffles differ from call to call, and a compressed model does not."""
    return lambda m: (m(task.inputs).argmax(1) == m(task.inputs).argmax(1)).double().mean()


#: They see what becomes of a float model, and not what becomes of a compressed one.
LIARS: dict[str, Blind] = {
    "float where it does not load": tolerant,
    "own decisions as labels": of_itself,
    "a sum beside a large number": lambda task: (
        lambda m: 1e6 - functional.cross_entropy(m(task.inputs).detach(), task.labels).double()
    ),
    "of float layers alone": lambda task: (
        lambda m: task.accuracy(m if task.is_float(m) or m(task.inputs) is None else task.model)
    ),
}


@pytest.mark.parametrize("name", LIARS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_outputs_are_compared_on_what_evaluate_gives_the_model(
    task: "Task", name: str, calibrated: bool
) -> None:
    batches = [task.inputs[:100]] if calibrated else None
    result = vq.tune(task.model, LIARS[name](task), None, batches, candidates=vq.KM(k=1))
    assert not result.passed
    assert result.agreement is not None
    assert "does not see what compression has done" in str(result.stopped)


def test_without_calibration_data_results_have_their_agreement(task: "Task") -> None:
    for settings in ({}, {"timeout": 600.0}):
        result = vq.tune(task.model, task.accuracy, None, candidates=vq.KM(k=64), **settings)
        assert result.passed
        assert result.agreement is not None
        assert result.agreement > 0.9


class WithLoss(nn.Module):
    """As transformers return it; a cache remembers the calls, and may refuse another."""

    def __init__(self, net: nn.Module, logits: bool, refuses: bool) -> None:
        super().__init__()
        self.net, self.logits, self.refuses = net, logits, refuses

    def forward(self, inputs: Tensor, labels: Tensor, cache: dict[str, Tensor]) -> object:
        if self.refuses and "seen" in cache:
            raise RuntimeError("called again with what the first call has filled")
        cache["seen"] = inputs
        logits = self.net(inputs) / 64
        loss = functional.cross_entropy(logits, labels)
        return {"loss": loss, "logits": logits} if self.logits else {"loss": loss}


@pytest.mark.parametrize("logits", [True, False])
@pytest.mark.parametrize("refuses", [True, False])
@pytest.mark.parametrize("samples", [100, 500])
def test_losses_and_caches_are_no_alarm(
    task: "Task", logits: bool, refuses: bool, samples: int
) -> None:
    batches = list(zip(task.inputs.split(samples), task.labels.split(samples), strict=True))

    def evaluate(model: nn.Module) -> float:
        with torch.no_grad():
            return sum(float(model(x, y, cache={})["loss"]) for x, y in batches)

    result = vq.tune(
        WithLoss(task.model, logits, refuses),
        evaluate,
        vq.LossBudget(relative=0.2, higher_is_better=False),
        candidates=vq.KM(k=64),
    )
    assert result.passed
    assert (result.agreement is None) is (refuses or not logits)


METRICS: dict[str, Blind] = {
    "constant": lambda _: lambda _: 0.9,
    "true": lambda _: lambda _: True,
    "of another model": lambda task: lambda _: task.accuracy(task.model),
    "a clock": clock,
    "outputs": lambda task: lambda m: 1 + m(task.inputs)[:, 0].detach().sigmoid(),
    "how sure": lambda task: lambda m: m(task.inputs).detach().softmax(1).amax(1),
    "a share of classes": lambda task: lambda m: (m(task.inputs).argmax(1) == 3).double().mean(),
}


@pytest.mark.parametrize("name", METRICS)
@pytest.mark.parametrize("calibrated", [True, False])
def test_a_metric_without_answers_passes_no_ruined_model(
    task: "Task", name: str, calibrated: bool
) -> None:
    batches = [task.inputs[:100]] if calibrated else None
    small = vq.compress(task.model, LADDER[0], batches)
    assert task.accuracy(small) < 0.9
    result = vq.tune(
        task.model, METRICS[name](task), vq.LossBudget(relative=0.5), batches, candidates=LADDER[0]
    )
    assert not result.passed
    assert result.model is task.model
    if calibrated or result.agreement is None:
        assert BLIND in str(result.stopped)
        assert ("give calibration data" in str(result.stopped)) is not calibrated
    else:
        assert "on what evaluate gives the model" in str(result.stopped)


@pytest.mark.parametrize("name", METRICS)
def test_outputs_that_agree_make_up_for_it(task: "Task", name: str) -> None:
    """Also of metrics that know no answers by their nature."""
    result = vq.tune(
        task.model,
        METRICS[name](task),
        vq.LossBudget(relative=0.5),
        [task.inputs[:100]],
        candidates=vq.KM(k=64),
    )
    assert result.passed
    assert result.agreement is not None
    assert result.agreement > 0.9


@pytest.mark.parametrize("calibrated", [True, False])
def test_min_agreement_switches_it_off(task: "Task", calibrated: bool) -> None:
    budget = vq.LossBudget(relative=0.5, min_agreement=None)
    batches = [task.inputs[:100]] if calibrated else None
    assert vq.tune(task.model, lambda _: 0.9, budget, batches, candidates=LADDER[0]).passed


@pytest.mark.parametrize(
    ("metric", "budget"),
    [
        (lambda task, m: task.accuracy(m) - 1.05, vq.LossBudget(absolute=1.0)),
        (
            lambda task, m: 1.05 - task.accuracy(m),
            vq.LossBudget(absolute=1.0, higher_is_better=False),
        ),
    ],
)
def test_a_budget_that_ruined_models_hold_is_none(
    task: "Task", metric: Callable[["Task", nn.Module], float], budget: vq.LossBudget
) -> None:
    """One point of percents, of an error from 0 to 1."""
    result = vq.tune(
        task.model,
        lambda m: metric(task, m),
        budget,
        [task.inputs[:100]],
        candidates=LADDER[0],
    )
    assert not result.passed
    assert BLIND in str(result.stopped)


def by_weights(model: nn.Module, inputs: Tensor) -> Tensor:
    for place in (0, 2, 4):
        layer = model.get_submodule(str(place))
        inputs = inputs @ layer.weight.T + layer.bias
        inputs = inputs.relu() if place < 4 else inputs
    return inputs


@pytest.mark.parametrize(
    "run",
    [
        lambda m, x: m(x),
        lambda m, x: torch.cat([m(one[None]) for one in x]),
        lambda m, x: m[4](m[3](m[2](m[1](m[0](x))))),
        by_weights,
    ],
)
@pytest.mark.parametrize("ladder", [[vq.KM(k=6)], [vq.KM(k=6), vq.KM(k=64)]])
@pytest.mark.parametrize("calibrated", [True, False])
def test_no_alarm_however_evaluate_runs_the_model(
    task: "Task",
    run: Callable[[nn.Module, Tensor], Tensor],
    ladder: list[vq.Scheme],
    calibrated: bool,
) -> None:
    def evaluate(model: nn.Module) -> Tensor:
        with torch.no_grad():
            return run(model, task.inputs).argmax(1) == task.labels

    batches = [task.inputs[:100]] if calibrated else None
    budget = vq.LossBudget(relative=0.15)
    assert vq.tune(task.model, evaluate, budget, batches, candidates=ladder).passed


class Detector(nn.Module):
    """As many finds for each sample as there are, in any order: a class and how sure it is."""

    def __init__(self, scores: nn.Module, form: str) -> None:
        super().__init__()
        self.scores, self.form = scores, form

    def forward(self, inputs: Tensor) -> object:
        found = [
            torch.stack([at, each[at]], 1)
            for each in self.scores(inputs)
            for at in [(each >= each.amax() - 1).nonzero().flatten()]
        ]
        match self.form:
            case "tensors":
                return found
            case "dicts":
                return [{"classes": each[:, 0], "scores": each[:, 1]} for each in found]
        return {"classes": [each[:, 0] for each in found], "scores": [each[:, 1] for each in found]}

    def likeliest(self, inputs: Tensor) -> Tensor:
        """Of each sample; the same in whatever order its finds are."""
        found: Any = self(inputs)
        match self.form:
            case "tensors":
                found = [(each[:, 0], each[:, 1]) for each in found]
            case "dicts":
                found = [(each["classes"], each["scores"]) for each in found]
            case _:
                found = list(zip(found["classes"], found["scores"], strict=True))
        return torch.stack([classes[scores.argmax()] for classes, scores in found])


@pytest.mark.parametrize("form", ["tensors", "dicts", "dict"])
@pytest.mark.parametrize("batch", [500, 100, 1])
def test_no_alarm_where_samples_have_outputs_of_their_own(
    task: "Task", form: str, batch: int
) -> None:
    """As detectors have: it is samples that are shuffled, not what was found in each."""

    def evaluate(model: nn.Module) -> Tensor:
        assert isinstance(model, Detector)
        with torch.no_grad():
            found = [model.likeliest(part) for part in task.inputs.split(batch)]
        return torch.cat(found) == task.labels

    result = vq.tune(
        Detector(task.model, form), evaluate, vq.LossBudget(relative=0.15), candidates=vq.KM(k=64)
    )
    assert result.passed


def test_what_cannot_be_evaluated_is_no_alarm(task: "Task") -> None:
    """A function that refuses models that it does not know, as a cache by names of files may."""
    floats = {name: value.clone() for name, value in task.model.state_dict().items()}

    def evaluate(model: nn.Module) -> Tensor:
        if task.is_float(model):
            assert not model._forward_hooks
            assert all(torch.equal(v, floats[n]) for n, v in model.state_dict().items())
            assert not any(m._forward_hooks for m in model.modules())
        return task.correct(model)

    result = vq.tune(task.model, evaluate, vq.LossBudget(relative=0.5), candidates=vq.KM(k=4))
    assert result.passed


def test_one_evaluation_shows_that_a_metric_sees(task: "Task") -> None:
    """And none is needed where outputs agree."""
    calls: list[nn.Module] = []

    def evaluate(model: nn.Module) -> float:
        calls.append(model)
        return task.accuracy(model)

    for batches, count in (([task.inputs[:100]], 3), (None, 4)):
        calls.clear()
        result = vq.tune(
            task.model, evaluate, vq.LossBudget(relative=0.1), batches, candidates=vq.KM(k=64)
        )
        assert result.passed
        assert len(calls) == count


def test_ruined_models_are_copies(task: "Task") -> None:
    before = {name: value.clone() for name, value in task.model.state_dict().items()}
    signs, zeros = scrambled(task.model, 0), silenced(task.model)
    assert bool((zeros(task.inputs) == 0).all())
    assert bool((task.model(task.inputs) != 0).any())
    changed = 0
    for name, value in signs.state_dict().items():
        assert torch.equal(value.abs(), before[name].abs())
        changed += int((value != before[name]).sum())
        assert torch.equal(task.model.state_dict()[name], before[name])
    count = sum(value.numel() for value in before.values())
    assert 0.4 * count < changed < 0.6 * count


def test_a_complex_metric_is_an_error(task: "Task") -> None:
    """Half of it would be lost."""
    for value in (0.9 + 0.1j, torch.tensor([0.9 + 0.1j, 0.3])):
        with pytest.raises(ValueError, match="it must return a number, or one per sample"):
            vq.tune(task.model, lambda _: value, **task.settings)  # noqa: B023


RECIPE = """\
version: 1
model: blind:model
quantization:
  calibration: blind:batches
  model_wise: {scheme: km(k=2)}
evaluation: {tuning: "blind:evaluate"}
tuning: {accuracy_criterion: {relative: 0.01MORE}}
output: out
"""


@pytest.mark.parametrize(("more", "status"), [("", 3), (", min_agreement: null", 0)])
def test_a_recipe_ends_with_the_verdict(
    task: "Task",
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    more: str,
    status: int,
) -> None:
    functions = SimpleNamespace(
        model=lambda: task.model,
        batches=lambda: [task.inputs[:100]],
        evaluate=lambda _: task.accuracy(task.model),
    )
    monkeypatch.setitem(sys.modules, "blind", functions)
    monkeypatch.chdir(tmp_path)
    Path("recipe.yaml").write_text(RECIPE.replace("MORE", more))
    assert main(["tune", "recipe.yaml", "-q"]) == status
    assert (BLIND in " ".join(capsys.readouterr().out.split())) == (status == 3)
    assert Path("out/model.vq").exists() == (status == 0)
