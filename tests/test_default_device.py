"""Whole-model calls do not count on torch's default device."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq

X = torch.randn(16, 8, generator=torch.Generator().manual_seed(0))
IMAGES = torch.randn(4, 4, 6, 6, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def elsewhere() -> Iterator[Callable[[], None]]:
    """Sets a default device on which nothing has values; the old one comes back."""
    before = torch.get_default_device()
    yield lambda: torch.set_default_device("meta")
    torch.set_default_device(before)


@pytest.mark.filterwarnings("ignore:codes are far off")
@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=4),
        vq.KM(k=5, keep_zeros=True),
        vq.KM(k=4, scale="row"),
        vq.PQ(k=4, dim=4),
        vq.PQ(k=4, dim=4, codebooks="tensor"),
        vq.RQ(k=4),
        vq.Binary(),
    ],
    ids=str,
)
@pytest.mark.parametrize(
    ("build", "inputs"),
    [
        (lambda: nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)), X),
        (lambda: nn.Sequential(nn.Conv2d(4, 8, 3, groups=2), nn.Flatten()), IMAGES),
        (lambda: nn.GRU(8, 8), X),
    ],
    ids=["linear", "convolution", "recurrent"],
)
def test_the_same_codes(
    scheme: vq.Scheme,
    build: Callable[[], nn.Module],
    inputs: Tensor,
    elsewhere: Callable[[], None],
    tmp_path: Path,
) -> None:
    model, fresh = build().eval(), build().eval()
    wanted = [vq.compress(model, scheme, data).state_dict() for data in (None, [inputs])]
    elsewhere()
    for data, state in zip((None, [inputs]), wanted, strict=True):
        small = vq.compress(model, scheme, data)
        vq.save(small, tmp_path / "m.vq")
        assert str(vq.summary(small))
        for each in (small, vq.load(tmp_path / "m.vq", fresh)):
            assert each.state_dict().keys() == state.keys()
            assert all(torch.equal(v, state[key]) for key, v in each.state_dict().items())


def test_training(elsewhere: Callable[[], None]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    elsewhere()
    small = vq.compress(model, {"0": vq.KM(k=2)})
    vq.compensate(small, model, [X])
    vq.finetune(small, [X], teacher=model)
    vq.prune(model, [X] * 3, 0.5)
    assert {p.device.type for p in small.parameters()} == {"cpu"}


@pytest.mark.filterwarnings("ignore:no calibration data")
def test_presets_and_searches(elsewhere: Callable[[], None]) -> None:
    model = nn.Sequential(nn.Linear(8, 8), nn.ReLU(), nn.Linear(8, 4)).eval()
    wanted = vq.compress(model, "auto", [X]).state_dict()
    elsewhere()
    small = vq.compress(model, "auto", [X]).state_dict()
    assert all(torch.equal(value, wanted[key]) for key, value in small.items())
    budget = vq.LossBudget(relative=0.01, min_agreement=None)
    for calibration in (None, [X]):
        result = vq.tune(
            model,
            lambda m: [1.0] * 29 + [float(m(X).isfinite().all())],
            budget,
            calibration=calibration,
            max_trials=2,
        )
        assert result.passed
