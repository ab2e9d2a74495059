"""``compress`` with calibration: inputs of any form, and what they change."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.calibration.statistics import InputMoments
from vq_plugin.nn import CodebookLinear, find_slots


class TwoInputs(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a = nn.Linear(8, 8)
        self.b = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # Some inputs hardly ever differ from 0.
        return self.a(x * torch.tensor([10.0] + [0.01] * 7)) + self.b(input=y)


def pairs() -> list[tuple[Tensor, Tensor]]:
    rng = torch.Generator().manual_seed(0)
    return [(torch.randn(16, 8, generator=rng), torch.randn(16, 8, generator=rng))] * 2


def runs() -> dict[str, Any]:
    def generator() -> Iterator[tuple[Tensor, Tensor]]:
        yield from pairs()

    def run(model: nn.Module) -> None:
        assert not model.training
        assert not torch.is_grad_enabled()
        for x, y in pairs():
            model(x, y)

    return {
        "tuples": pairs(),
        "lists": [list(pair) for pair in pairs()],
        "dicts": [{"y": y, "x": x} for x, y in pairs()],
        "generator": generator(),
        "callable": run,
    }


@pytest.mark.parametrize("form", ["tuples", "lists", "dicts", "generator", "callable"])
def test_calibration_comes_in_many_forms(form: str) -> None:
    model = TwoInputs()
    schemes = {"a": vq.KM(k=4)}
    plain = vq.compress(model, schemes)
    small = vq.compress(model, schemes, runs()[form])
    assert torch.equal(small.a.weight, vq.compress(model, schemes, pairs()).a.weight)

    def error(layer: nn.Module) -> float:
        change = layer.weight - model.a.weight  # type: ignore[operator]
        return change[:, 0].square().sum().item()

    assert error(small.a) < 0.5 * error(plain.a)


def test_calibration_of_plain_tensors_lowers_the_output_error() -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(32, 32))
    sizes = torch.tensor([10.0] * 2 + [0.1] * 30)
    data = [torch.randn(64, 32) * sizes for _ in range(3)]
    fresh = torch.randn(500, 32) * sizes
    plain, aware = (vq.compress(model, vq.PQ(k=16, dim=8), c) for c in (None, data))
    errors = [(m(fresh) - model(fresh)).square().mean() for m in (plain, aware)]
    assert errors[1] < 0.5 * errors[0]


def test_calibration_reaches_layers_that_are_called_by_keyword() -> None:
    small = vq.compress(TwoInputs(), {"b": vq.KM(k=4)}, pairs())
    assert isinstance(small.b, CodebookLinear)


def test_calibration_that_never_reaches_a_layer_is_an_error() -> None:
    with pytest.raises(ValueError, match="layer 'unused': calibration never ran it"):
        vq.compress(TwoInputs(), {"a": vq.KM(), "unused": vq.KM()}, pairs())
    with pytest.raises(ValueError, match="layer 'a': calibration never ran it"):
        vq.compress(TwoInputs(), {"a": vq.KM()}, [])
    # What is left alone need not run.
    assert vq.compress(TwoInputs(), {"a": vq.KM()}, pairs()) is not None


def test_a_pattern_error_comes_before_calibration_runs() -> None:
    def never(_: nn.Module) -> None:
        raise AssertionError("ran")

    with pytest.raises(ValueError, match="matches nothing"):
        vq.compress(TwoInputs(), {"nope": vq.KM()}, never)


def test_zero_inputs_of_grouped_convolutions_count_least() -> None:
    torch.manual_seed(0)
    layer = nn.Conv2d(4, 8, 3, groups=2, bias=False)
    x = torch.randn(8, 4, 6, 6)
    x[:, 1] *= 100
    # The second channel of the first group, that is of outputs 0 to 3.
    plain, aware = (vq.compress(layer, vq.KM(k=16), c).weight for c in (None, [x]))
    error = [(w - layer.weight).square().sum((2, 3)) for w in (plain, aware)]
    assert error[1][:4, 1].sum() < 0.7 * error[0][:4, 1].sum()
    assert error[1][4:].sum() > error[0][4:].sum()


def test_statistics_keep_no_gradients_of_inputs() -> None:
    model = nn.Sequential(nn.Linear(1100, 4))
    (slot,) = find_slots(model).values()
    moments = InputMoments(slot)
    moments.add(model[0], {"input": torch.randn(3, 1100, requires_grad=True)})
    assert not moments.second.requires_grad


def test_labels_among_the_arguments_are_told_from_errors_of_the_model() -> None:
    class Fails(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(4, 4)

        def forward(self, value: Tensor) -> Tensor:
            return self.fc(value) + None  # type: ignore[operator]

    x = torch.randn(2, 4)
    with pytest.raises(ValueError, match="so leave the labels out"):
        vq.compress(nn.Sequential(nn.Linear(4, 4)), vq.KM(k=4), [(x, torch.zeros(2))])
    with pytest.raises(TypeError, match="unsupported operand"):
        vq.compress(Fails(), vq.KM(k=4), [(x,)])


@pytest.mark.parametrize("batch", [None, 3, "text"])
@pytest.mark.parametrize("schemes", [vq.KM(k=4), "auto"], ids=str)
def test_a_batch_that_is_no_tensor_is_refused(batch: object, schemes: Any) -> None:
    with pytest.raises(ValueError, match="the model does not take a batch of calibration"):
        vq.compress(nn.Linear(8, 8), schemes, [batch])
