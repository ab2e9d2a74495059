"""Whole-model calls do not count on torch's default dtype."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=[torch.float64, torch.bfloat16], ids=str)
def other(request: pytest.FixtureRequest) -> Iterator[Callable[[], None]]:
    """Sets another default dtype; the old one comes back."""
    before = torch.get_default_dtype()
    yield lambda: torch.set_default_dtype(request.param)
    torch.set_default_dtype(before)


def net() -> nn.Module:
    return nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.LayerNorm(8), nn.Linear(8, 4)).eval()


def assert_same(state: dict[str, Tensor], wanted: dict[str, Tensor]) -> None:
    assert state.keys() == wanted.keys()
    for key, value in state.items():
        assert value.dtype == wanted[key].dtype
        assert torch.equal(value, wanted[key]), key


@pytest.mark.filterwarnings("ignore:codes are far off")
@pytest.mark.parametrize("data", [None, [X]], ids=["plain", "calibrated"])
@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=4),
        vq.KM(k=5, keep_zeros=True, scale="row"),
        vq.PQ(k=4, dim=3),
        vq.RQ(k=4),
        vq.Binary(),
        vq.Signs(levels=2, block=4),
        vq.Uniform(0.1),
        vq.Factored(vq.SVD(rate=2), vq.KM(k=4)),
        "auto",
        "small",
    ],
    ids=str,
)
def test_the_same_codes(
    scheme: vq.Scheme | str, data: list[Tensor] | None, other: Callable[[], None], tmp_path: Path
) -> None:
    model, fresh = net(), net()
    wanted = vq.compress(model, scheme, data).state_dict()
    other()
    small = vq.compress(model, scheme, data)
    vq.save(small, tmp_path / "m.vq")
    assert_same(small.state_dict(), wanted)
    assert_same(vq.load(tmp_path / "m.vq", fresh).state_dict(), wanted)


@pytest.mark.parametrize(
    "train",
    [
        lambda model: vq.finetune(vq.compress(model, vq.KM(k=4)), [X], teacher=model),
        lambda model: vq.prune(model, [X] * 3, 0.5),
        lambda model: vq.learn(model, [X] * 3, rate_weight=0.1, epochs=1, rest="int8"),
        lambda model: vq.factorize(model, vq.SVD(rate=2), [X]),
    ],
    ids=["finetune", "prune", "learn", "factorize"],
)
def test_the_same_training(
    train: Callable[[nn.Module], nn.Module | None], other: Callable[[], None]
) -> None:
    model = net()
    one = train(model)
    other()
    two = train(model)
    assert one is not None
    assert two is not None
    assert_same(two.state_dict(), one.state_dict())
