"""A host that is not shipped: all that it needs of others is in ``vq_plugin.hosting``."""

import copy
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

import vq_plugin as vq
from vq_plugin.hosting.check import check_schemes
from vq_plugin.hosting.follower import CodebookFollower
from vq_plugin.hosting.plan import plans
from vq_plugin.hosting.statistics import attach_statistics
from vq_plugin.nn import find_slots

SCHEMES = {"0": vq.PQ(k=8, dim=4), "*": vq.KM(k=4)}


def prepare(model: nn.Module, schemes) -> nn.Module:
    """Leaves a plan at each layer, as a host does that knows no names at its second call."""
    prepared = copy.deepcopy(model)
    for name, plan in plans(prepared, schemes, seed=0).items():
        prepared.get_submodule(name).toy = plan
    return prepared


def observe(prepared: nn.Module) -> None:
    for module in list(prepared.modules()):
        if hasattr(module, "toy"):
            attach_statistics(find_slots(module).values())


def train(prepared: nn.Module) -> None:
    for module in list(prepared.modules()):
        if hasattr(module, "toy"):
            parametrize.register_parametrization(module, "weight", CodebookFollower(module.toy))


def convert(prepared: nn.Module, times: int = 1) -> nn.Module:
    """Changes the model in place; asks several times for each layer."""
    for name, module in list(prepared.named_modules(remove_duplicate=False)):
        if hasattr(module, "toy"):
            maker = module.toy
            if parametrize.is_parametrized(module):
                (maker,) = module.parametrizations.weight
                parametrize.remove_parametrizations(module, "weight", leave_parametrized=False)
            for _ in range(times):
                layer = maker.convert(module)
            prepared.set_submodule(name, layer)
    return prepared


def check(converted: nn.Module, schemes) -> nn.Module:
    check_schemes(
        converted,
        schemes,
        host="Toy",
        float_type=lambda module: None,
        functions={},
        why_not=lambda name: "nobody prepared it",
    )
    return converted


class Tied(nn.Module):
    """A layer under two names, and two layers with one weight."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(16, 16), nn.Linear(16, 16)
        self.other.weight = self.one.weight
        self.again = self.one

    def forward(self, value: Tensor) -> Tensor:
        return self.again(self.other(self.one(value).relu()).relu())


@pytest.fixture
def model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 8)).eval()


@pytest.fixture
def batches() -> Iterable[Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randn(20, 16, generator=generator) for _ in range(3)]


@pytest.mark.parametrize("calibrated", [False, True])
def test_it_makes_what_compress_makes(model, batches, calibrated, assert_same):
    prepared = prepare(model, SCHEMES)
    if calibrated:
        observe(prepared)
        with torch.no_grad():
            for batch in batches:
                prepared(batch)
    converted = check(convert(prepared, times=2), SCHEMES)
    expected = vq.compress(model, SCHEMES, batches if calibrated else None)
    assert_same(converted, expected, batches[0])
    assert not any("input_stats" in key for key in converted.state_dict())


def test_ties_stay(batches, assert_same):
    torch.manual_seed(0)
    tied = Tied().eval()
    converted = check(convert(prepare(tied, vq.KM(k=4))), vq.KM(k=4))
    assert converted.again is converted.one
    assert converted.other.codebooks is converted.one.codebooks
    assert_same(converted, vq.compress(tied, vq.KM(k=4)), batches[0])


def test_layers_of_one_weight_want_one_scheme():
    with pytest.raises(ValueError, match="'one' and 'other' share one weight"):
        prepare(Tied(), {"one": vq.KM(), "other": vq.PQ()})


def test_it_trains(model, batches):
    prepared = prepare(model, SCHEMES).train()
    train(prepared)
    optimizer = torch.optim.SGD(prepared.parameters(), lr=0.1)
    losses = []
    for _ in range(20):
        optimizer.zero_grad()
        loss = (prepared(batches[0]) - 1).square().mean()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < 0.7 * losses[0]
    expected = prepared.eval()(batches[1])
    torch.testing.assert_close(check(convert(prepared), SCHEMES)(batches[1]), expected)


def test_what_was_forgotten_is_an_error(model):
    prepared = prepare(model, SCHEMES)
    del prepared[2].toy
    with pytest.raises(ValueError, match=r"(?s)Toy did not do.*'2': asked for km\(k=4\) but nob"):
        check(convert(prepared), SCHEMES)
    with pytest.raises(ValueError, match=r"'0': asked for km\(k=2\) but it has pq"):
        check(convert(prepare(model, SCHEMES)), vq.KM(k=2))
    with pytest.raises(ValueError, match=r"'2': not asked for but it has km\(k=4\)"):
        check(convert(prepare(model, SCHEMES)), {"0": SCHEMES["0"]})
