"""What errors of weights do to the outputs: against the change that they really make."""

from collections import UserDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from scipy.special import log_softmax
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import vq_plugin as vq
from vq_plugin.calibration import input_moments
from vq_plugin.calibration.model_calls import float_tensors
from vq_plugin.fit.weight import quantize_weight
from vq_plugin.nn import find_slots
from vq_plugin.replace import put_parameter
from vq_plugin.sensitivity import Sensitivity, felt_moments, sensitivities


class Tied(nn.Module):
    """One table that is looked up and multiplied with."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.out = nn.Embedding(20, 8), nn.Linear(8, 20, bias=False)
        self.out.weight = self.embed.weight

    def forward(self, index: Tensor) -> Tensor:
        scores: Tensor = self.out(torch.tanh(self.embed(index)).mean(1))
        return scores


class Sentences(nn.Module):
    """A table, a recurrent layer or a transformer's, and classes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.embed = nn.Embedding(30, 16)
        self.body: nn.Module = (
            nn.LSTM(16, 12, 2, batch_first=True, bidirectional=True)
            if kind == "lstm"
            else nn.TransformerEncoderLayer(16, 4, 24, batch_first=True)
        )
        self.out = nn.Linear(24 if kind == "lstm" else 16, 5)

    def forward(self, index: Tensor) -> Tensor:
        found = self.body(self.embed(index))
        found = found[0] if isinstance(found, tuple) else found
        scores: Tensor = self.out(found.mean(1))
        return scores


def images(*shape: int) -> list[Tensor]:
    return [torch.randn(100, *shape) for _ in range(5)]


def words(count: int) -> list[Tensor]:
    return [torch.randint(0, count, (100, 7)) for _ in range(5)]


def dense() -> tuple[nn.Module, list[Tensor]]:
    net = nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 24), nn.GELU(), nn.Linear(24, 4))
    return net, images(6)


def convolutions() -> tuple[nn.Module, list[Tensor]]:
    net = nn.Sequential(
        nn.Conv2d(3, 12, 3, padding=1), nn.BatchNorm2d(12), nn.ReLU(),
        nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.Conv2d(12, 8, 1), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 4),
    )  # fmt: skip
    return net, images(3, 8, 8)


def parametrized() -> tuple[nn.Module, list[Tensor]]:
    net, data = dense()
    parametrizations.weight_norm(net[0])  # type: ignore[index]
    prune.l1_unstructured(net[2], "weight", 0.5)  # type: ignore[index,no-untyped-call]
    return net, data


MODELS: dict[str, Callable[[], tuple[nn.Module, list[Tensor]]]] = {
    "dense": dense,
    "convolutions": convolutions,
    "parametrized": parametrized,
    "tied": lambda: (Tied(), words(20)),
    "lstm": lambda: (Sentences("lstm"), words(30)),
    "transformer": lambda: (Sentences("transformer"), words(30)),
}


def divergence(before: Tensor, after: Tensor) -> float:
    """Kullback-Leibler divergence by scipy."""
    p, q = (log_softmax(t.double().numpy(), axis=1) for t in (before, after))
    return float((torch.tensor(p).exp() * torch.tensor(p - q)).sum(1).mean())


@torch.no_grad()
def outputs(model: nn.Module, data: list[Tensor]) -> Tensor:
    return torch.cat([model(x) for x in data])


def predicted_and_real(
    model: nn.Module, data: list[Tensor], name: str, size: float = 0.02
) -> tuple[float, float]:
    """Of noise in one weight."""
    slots = find_slots(model)
    moments = input_moments(model, slots.values(), data)
    found = sensitivities(model, slots.values(), data, moments)[name]
    slot, before = slots[name], outputs(model, data)
    generator = torch.Generator().manual_seed(1)
    change = size * torch.randn(slot.weight.shape, generator=generator) * slot.weight.std()
    shift = moments[name].bias_shift(change)
    changed = slot.view.restore(slot.weight.detach() + change)
    with torch.no_grad():
        if slot.bias is not None and shift is not None:
            getattr(slot.module, slot.bias).add_(shift)
        if slot.parameter in slot.module._parameters:
            slot.value.copy_(changed)
        else:
            put_parameter(slot.module, slot.parameter, changed)
    return found.harm(change), divergence(before, outputs(model, data))


CASES = [(kind, name) for kind, make in MODELS.items() for name in find_slots(make()[0])]


@pytest.mark.parametrize(("kind", "name"), CASES)
def test_a_small_error_of_any_weight_does_what_was_predicted(kind: str, name: str) -> None:
    torch.manual_seed(0)
    model, data = MODELS[kind]()
    model.eval()
    outputs(model, data)
    found, real = predicted_and_real(model, data, name)
    assert real > 0
    # A mean of 32 random gradients; over all of these the real change spans five orders.
    assert 0.4 < found / real < 2.5


def of_all(model: nn.Module, data: Any, seed: int = 0) -> dict[str, Sensitivity]:
    slots = find_slots(model).values()
    return sensitivities(model, slots, data, input_moments(model, slots, data), seed=seed)


def rows_of(model: nn.Module, data: Any, name: str, seed: int = 0) -> Tensor:
    return of_all(model, data, seed)[name].rows()


def test_values_give_the_squared_change_over_the_variance() -> None:
    """Of one output without bias it is known exactly: the second moments over the variance."""
    torch.manual_seed(0)
    model, data = nn.Linear(6, 1, bias=False), [torch.randn(100, 6) for _ in range(5)]
    change = torch.randn(1, 6)
    changes = torch.cat(data) @ change.T
    expected = float(changes.square().mean() / outputs(model, data).var())
    assert 0.5 < of_all(model, data)[""].harm(change) / expected < 2


def test_rows_that_matter_more_are_more_sensitive() -> None:
    torch.manual_seed(0)
    model, data = dense()
    with torch.no_grad():
        model[4].weight[:, :12] *= 0.01  # type: ignore[index]
        model[2].weight[20:] *= 0  # type: ignore[index]
    rows = rows_of(model, data, "2")
    assert float(rows[:12].max()) < 0.01 * float(rows[12:].min())


@dataclass
class Found:
    scores: Tensor
    note: str = ""


class Several(nn.Module):
    """Two heads; its outputs come in many shapes."""

    def __init__(self, kind: str) -> None:
        super().__init__()
        self.kind, self.classes, self.value = kind, nn.Linear(6, 4), nn.Linear(6, 1)

    def forward(self, x: Tensor) -> object:
        classes, value = self.classes(x), self.value(x)
        match self.kind:
            case "dataclass":
                return Found(classes), Found(value)
            case "dict":
                return {"classes": classes, "value": value, "best": classes.argmax(1), "note": "x"}
        return [classes, {"value": value, "none": None}]


@pytest.mark.parametrize("kind", ["dataclass", "dict", "nested"])
def test_all_float_outputs_count(kind: str) -> None:
    torch.manual_seed(0)
    model, data = Several(kind), images(6)
    rows = {name: found.rows() for name, found in of_all(model, data).items()}
    # Each head is half of the mean over both.
    for head in (model.classes, model.value):
        name = "classes" if head is model.classes else "value"
        alone = rows_of(head, data, "").sum()
        assert float(rows[name].sum()) == pytest.approx(float(alone) / 2, rel=0.4)
    assert len(list(float_tensors(model(data[0])))) == 2


def test_rows_that_are_looked_up_often_get_shorter_steps() -> None:
    table = nn.Embedding(200, 4)
    model = nn.Sequential(table, nn.Flatten(), nn.Linear(32, 3))
    # Row 0 in half of all places, rows up to 150 now and then, the others never.
    index = torch.randint(1, 150, (512, 8))
    index[:, :4] = 0
    slot = find_slots(model)["0"]
    moments = input_moments(model, [slot], [index])
    found = sensitivities(model, [slot], [index], moments)
    felt = felt_moments([slot], moments, found)["0"]
    rows = found["0"].rows()
    assert felt.outputs is not None
    assert felt.outputs[0] == rows[0] > 20 * rows[1:].max()
    assert bool((felt.outputs[150:] == rows[:150].mean()).all())
    assert bool((felt.outputs >= felt.outputs[150]).all())
    small = quantize_weight(table.weight, vq.Uniform(step=0.5, scale="row"), moments=felt)
    assert small.scale is not None
    steps = small.scale.float() / table.weight.detach().square().mean(1).sqrt()
    assert bool((steps[1:] > 2 * steps[0]).all())
    # Those that no data reached lose no more than those that some did.
    error = (small.decode() - table.weight.detach()).square().sum(1)
    assert float(error[150:].mean()) == pytest.approx(float(error[1:150].mean()), rel=0.3)


def test_every_form_of_calibration_says_about_the_same() -> None:
    torch.manual_seed(0)
    model, data = dense()

    @torch.inference_mode()
    def run(m: nn.Module) -> None:
        for x in data:
            for part in torch.split(x, 20):
                m(part.clone())

    whole = rows_of(model, data, "2").sum()
    forms: list[Any] = [[(x,) for x in data], [{"input": x} for x in data], run]
    for form in forms:
        assert float(rows_of(model, form, "2").sum()) == pytest.approx(float(whole), rel=0.3)


@dataclass(frozen=True)
class Batch:
    values: Tensor
    name: str = "batch"


@pytest.mark.parametrize(
    "batch_of",
    [
        lambda x: UserDict(values=x, name="batch"),
        Batch,
        lambda x: {"values": x},
        lambda x: [UserDict(values=x)],
    ],
    ids=["mapping", "dataclass", "dict", "nested"],
)
@pytest.mark.parametrize("context", [torch.no_grad, torch.inference_mode])
def test_a_call_with_one_batch_object_is_cut_as_its_tensors_are(
    batch_of: Callable[[Tensor], Any], context: Callable[[], Any]
) -> None:
    """As sentence-transformers call their models, in inference mode, and many training loops."""

    class Wrapped(nn.Module):
        def __init__(self, inner: nn.Module) -> None:
            super().__init__()
            self.inner = inner

        def forward(self, batch: Any) -> Tensor:
            batch = batch[0] if isinstance(batch, list) else batch
            values = batch.values if isinstance(batch, Batch) else batch["values"]
            output: Tensor = self.inner(values)
            return output

    torch.manual_seed(0)
    model, data = dense()
    expected = rows_of(model, data, "2")

    def run(m: nn.Module) -> None:
        with context():
            for x in data:
                buffer = x.clone()
                m(batch_of(buffer))
                # The caller may go on with it.
                buffer.zero_()

    found = rows_of(Wrapped(model), run, "inner.2")
    assert torch.allclose(found, expected, rtol=1e-5)


class Places(nn.Module):
    """Takes one sample at a time: what its first dimension counts are no samples."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Linear(40, 6)

    def forward(self, x: Tensor) -> Tensor:
        scores: Tensor = self.body(x.reshape(1, 40))
        return scores


def test_a_batch_that_cannot_be_cut_is_taken_whole() -> None:
    data = [torch.randn(40) for _ in range(20)]
    assert float(rows_of(Places(), data, "body").sum()) > 0


class Blind(nn.Module):
    """Its first layer is out of reach of gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            y = torch.relu(self.first(x))
        scores: Tensor = self.second(y)
        return scores


def test_what_no_gradient_reaches_is_named() -> None:
    with pytest.warns(UserWarning, match="no gradient reaches first: "):
        assert set(of_all(Blind(), images(6))) == {"second"}


def test_gradients_of_zeros_are_none() -> None:
    """As those of a cascade, whose first part says where the second looks."""

    class Cascade(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.second = nn.Linear(6, 8), nn.Linear(8, 4)

        def forward(self, x: Tensor) -> Tensor:
            found: Tensor = self.second(self.first(x).round())
            return found

    with pytest.warns(UserWarning, match="no gradient reaches first: "):
        assert set(of_all(Cascade(), images(6))) == {"second"}


def test_a_model_without_any_gradient_gives_nothing() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 4))
    model.forward = torch.no_grad()(model.forward)  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="no gradient reaches 0, 2: "):
        assert of_all(model, images(6)) == {}


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_model_without_finite_outputs_is_an_error(bad: float) -> None:
    model = nn.Linear(6, 3)
    data = images(6)
    moments = input_moments(model, find_slots(model).values(), data)
    with torch.no_grad():
        model.bias[0] = bad
    with pytest.raises(ValueError, match=r"float model's outputs .* not finite"):
        sensitivities(model, find_slots(model).values(), data, moments)


def test_the_model_is_left_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Dropout(0.5), nn.Linear(8, 3))
    model[0].requires_grad_(False)
    model[1].eval()
    modes = [module.training for module in model.modules()]
    trains = [p.requires_grad for p in model.parameters()]
    before = {key: value.clone() for key, value in model.state_dict().items()}
    of_all(model, images(6))
    assert [module.training for module in model.modules()] == modes
    assert [p.requires_grad for p in model.parameters()] == trains
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert not model._forward_hooks
    assert all(p.grad is None for p in model.parameters())


def test_the_seed_alone_decides(set_threads: Callable[[int], None]) -> None:
    torch.manual_seed(0)
    model, data = convolutions()
    model.eval()
    set_threads(1)
    first = of_all(model, data)
    set_threads(2)
    torch.manual_seed(99)
    for name, found in of_all(model, data).items():
        assert torch.equal(found.gradients, first[name].gradients)
    for name, found in of_all(model, data, seed=1).items():
        assert not torch.equal(found.gradients, first[name].gradients)


class Keeping(nn.Module):
    """Keeps what it computed, with its gradient, and has a hook that is its own."""

    def __init__(self) -> None:
        super().__init__()
        self.fc = nn.Linear(4, 2)
        self.calls = 0
        self.fc.register_forward_hook(self.count)

    def count(self, *_: Any) -> None:
        self.calls += 1

    def forward(self, x: Tensor) -> Tensor:
        self.kept = self.fc(x)
        return self.kept


def test_models_that_keep_activations() -> None:
    model, x = Keeping(), torch.randn(16, 4)
    model(x)
    assert sensitivities(model, find_slots(model).values(), [x], {}).keys() == {"fc"}
    assert model.calls == 1


def test_gradients_are_as_many_as_parameters_beside_tables_allow(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(1000, 4), nn.Flatten(), nn.Linear(28, 3))
    alone, data = nn.Embedding(1000, 4), words(1000)
    monkeypatch.setattr(
        "vq_plugin.sensitivity._MOST_BYTES", 2 * 20 * sum(p.numel() for p in model[2].parameters())
    )
    found = sensitivities(model, find_slots(model).values(), data, {})
    assert {len(each.gradients) for each in found.values()} == {20}
    # Nothing but a table.
    (only,) = sensitivities(alone, find_slots(alone).values(), data, {}).values()
    assert len(only.gradients) == 32
