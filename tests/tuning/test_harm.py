"""How much the output changes: against the definition, computed another way."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.utils import prune

from vq_plugin.nn import find_slots
from vq_plugin.tuning.harm import OutputChange


@dataclass
class Changed:
    """A compressed weight that decodes to anything."""

    value: Tensor
    bias_shift: Tensor | None = None

    def decode(self) -> Tensor:
        return self.value


def harm(change: OutputChange, weight: Tensor, changed: Tensor) -> float:
    """The harm of putting ``changed`` in the place of a weight of the model."""
    slot = next(slot for slot in find_slots(change.model).values() if slot.value is weight)
    return change(slot, Changed(slot.view.weight(changed)))  # type: ignore[arg-type]


def batches(count: int = 3, features: int = 6) -> list[Tensor]:
    return [torch.randn(20 + 7 * i, features) for i in range(count)]


def noisy(weight: Tensor, size: float) -> Tensor:
    generator = torch.Generator().manual_seed(1)
    return weight.detach() + size * torch.randn(weight.shape, generator=generator)


def outputs_with(model: nn.Module, name: str, changed: Tensor, inputs: list[Tensor]) -> list[Any]:
    with torch.no_grad():
        return [functional_call(model, {name: changed}, (x,)) for x in inputs]


def divergence(before: Tensor, after: Tensor) -> float:
    """Kullback-Leibler divergence at a quarter of the softmax's temperature, by scipy."""
    p, q = (log_softmax(4 * t.double().numpy(), axis=1) for t in (before, after))
    return float((torch.tensor(p).exp() * torch.tensor(p - q)).sum(1).mean())


def test_scores_of_classes_give_the_divergence_of_sharpened_decisions() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    data = batches()
    changed = noisy(model[0].weight, 0.2)
    with torch.no_grad():
        expected = sum(
            divergence(model(x), y)
            for x, y in zip(data, outputs_with(model, "0.weight", changed, data), strict=True)
        ) / len(data)
    assert harm(OutputChange(model, data), model[0].weight, changed) == pytest.approx(
        expected, rel=1e-5
    )
    assert expected > 0.01


def test_values_give_the_squared_change_over_the_variance() -> None:
    model, data = nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Linear(8, 1)), batches()
    for shape in ((-1, 1), (-1,)):
        net = nn.Sequential(model, nn.Unflatten(1, (1,)) if shape == (-1, 1) else nn.Flatten(0))
        changed = noisy(model[0].weight, 0.2)
        expected = 0.0
        after = outputs_with(net, "0.0.weight", changed, data)
        with torch.no_grad():
            for x, y in zip(data, after, strict=True):
                before = net(x).double()
                expected += float((y - before).square().mean() / before.var(correction=0))
        found = harm(OutputChange(net, data), model[0].weight, changed)
        assert found == pytest.approx(expected / len(data), rel=1e-5)


@pytest.mark.parametrize("columns", [1, 3])
def test_it_is_zero_for_the_same_weight_and_grows_with_the_noise(columns: int) -> None:
    model = nn.Sequential(nn.Linear(6, 16), nn.ReLU(), nn.Linear(16, columns))
    change = OutputChange(model, batches())
    weight = model[0].weight
    assert harm(change, weight, weight.detach().clone()) == 0.0
    harms = [harm(change, weight, noisy(weight, size)) for size in (0.01, 0.03, 0.1, 0.3, 1.0)]
    assert harms == sorted(harms)
    assert 0 < harms[0] < harms[-1] / 100


def test_single_samples_have_a_scale_too() -> None:
    model = nn.Linear(6, 1)
    change = OutputChange(model, list(torch.randn(5, 1, 6)))
    harms = [harm(change, model.weight, noisy(model.weight, size)) for size in (0.01, 0.1)]
    assert 0 < harms[0] < harms[1]


def test_convolutions_and_pixelwise_classes() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 3), nn.ReLU(), nn.Conv2d(4, 3, 1))
    data = [torch.randn(5, 2, 7, 7)]
    changed = noisy(model[0].weight, 0.1)
    with torch.no_grad():
        before, (after,) = model(data[0]), outputs_with(model, "0.weight", changed, data)
    # Every pixel is a decision.
    rows = [t.movedim(1, -1).reshape(-1, 3) for t in (before, after)]
    found = harm(OutputChange(model, data), model[0].weight, changed)
    assert found == pytest.approx(divergence(*rows), rel=1e-5)


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        return self.out(self.embed(index))


def test_tied_weights_change_together() -> None:
    model, index = Tied(), torch.arange(20)
    changed = noisy(model.embed.weight, 0.1)
    with torch.no_grad():
        expected = divergence(model(index), changed @ changed.T)
    found = harm(OutputChange(model, [index]), model.embed.weight, changed)
    assert found == pytest.approx(expected, rel=1e-5)


def test_a_layer_that_is_used_twice_changes_in_both_places() -> None:
    layer = nn.Linear(6, 6)
    model, data = nn.Sequential(layer, nn.Tanh(), layer), batches(1)
    changed = noisy(layer.weight, 0.1)
    with torch.no_grad():
        inner = torch.tanh(data[0] @ changed.T + layer.bias)
        expected = divergence(model(data[0]), inner @ changed.T + layer.bias)
    assert harm(OutputChange(model, data), layer.weight, changed) == pytest.approx(
        expected, rel=1e-5
    )


def test_a_pruned_weight_is_replaced_not_computed_again() -> None:
    model, data = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)), batches(1)
    plain = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    with torch.no_grad():
        model(data[0])  # pruning keeps a weight with a graph until it is run without one
        plain[0].weight.copy_(model[0].weight)
        plain[0].bias.copy_(model[0].bias)
        plain[2].load_state_dict(model[2].state_dict())
    changed = noisy(model[0].weight, 0.2)
    expected = harm(OutputChange(plain, data), plain[0].weight, changed)
    assert expected > 0
    assert harm(OutputChange(model, data), model[0].weight, changed) == expected


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[1].eval()
    modes = [module.training for module in model.modules()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    change = OutputChange(model, batches())
    first = harm(change, model[0].weight, noisy(model[0].weight, 0.1))
    # Dropout is off and the statistics stand still.
    assert harm(change, model[0].weight, noisy(model[0].weight, 0.1)) == first
    assert [module.training for module in model.modules()] == modes
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._forward_hooks
    assert all(p.grad is None and p.requires_grad for p in model.parameters())


def tuple_batches(data: list[Tensor]) -> list[object]:
    return [(x,) for x in data]


def mappings(data: list[Tensor]) -> list[object]:
    return [{"input": x} for x in data]


@pytest.mark.parametrize("form", [tuple_batches, mappings])
def test_calibration_takes_every_form(form: Callable[[list[Tensor]], Any]) -> None:
    model, data = nn.Linear(6, 3), batches()

    def run(m: nn.Module) -> None:
        for x in data:
            m(x)

    changed = noisy(model.weight, 0.1)
    expected = harm(OutputChange(model, data), model.weight, changed)
    assert harm(OutputChange(model, run), model.weight, changed) == expected
    assert harm(OutputChange(model, form(data)), model.weight, changed) == expected


class Several(nn.Module):
    """A model of two heads; its outputs come in many shapes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.body = kind, nn.Linear(6, 8)
        self.classes, self.value = nn.Linear(8, 4), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> object:
        y = self.body(x)
        classes, value = self.classes(y), self.value(y)
        match self.kind:
            case "tuple":
                return classes, value, classes.argmax(1)
            case "dict":
                return {"classes": classes, "value": value, "best": classes.argmax(1), "note": "x"}
        return [classes, {"value": value, "none": None}]


@pytest.mark.parametrize("kind", ["tuple", "dict", "nested"])
def test_all_float_outputs_count(kind: str) -> None:
    model, data = Several(kind), batches(2)
    change = OutputChange(model, data)
    assert len(change.reference) == 2 * 2
    heads = [
        harm(change, head.weight, noisy(head.weight, 0.2)) for head in (model.classes, model.value)
    ]
    assert all(value > 0 for value in heads)
    # Each head alone is half of the mean over both.
    alone = OutputChange(nn.Sequential(model.body, model.value), data)
    assert heads[1] == pytest.approx(
        harm(alone, model.value.weight, noisy(model.value.weight, 0.2)) / 2
    )


def test_outputs_that_are_not_finite_are_infinitely_harmful() -> None:
    model = nn.Linear(6, 3)
    change = OutputChange(model, batches())
    assert harm(change, model.weight, torch.full_like(model.weight, float("nan"))) == float("inf")
    assert harm(change, model.weight, torch.full_like(model.weight, 1e38)) == float("inf")


def test_no_outputs_are_an_error() -> None:
    def nothing() -> Iterator[Tensor]:
        yield from ()

    for calibration in ([], lambda _: None):
        with pytest.raises(ValueError, match="calibration gave no outputs"):
            OutputChange(nn.Linear(6, 3), calibration)
    with pytest.raises(ValueError, match="float tensors"):
        OutputChange(nn.Identity(), [torch.arange(3)])


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_float_model_without_finite_outputs_is_an_error(bad: float) -> None:
    with pytest.raises(ValueError, match=r"float model's outputs .* not finite"):
        OutputChange(nn.Linear(6, 3), [torch.full((2, 6), bad)])
