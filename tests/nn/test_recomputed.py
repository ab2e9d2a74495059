"""Weights that are computed before each pass are read as the next pass reads them."""

import copy
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

import vq_plugin as vq
from vq_plugin.nn import coded_weights, find_slots

pytestmark = [
    pytest.mark.filterwarnings("ignore:`torch.nn.utils.weight_norm` is deprecated"),
    pytest.mark.filterwarnings("ignore:calibration does not know the inputs"),
]
X = torch.randn(64, 16, generator=torch.Generator().manual_seed(0))


class EqualRate:
    """A user's hook of the same kind (Karras et al. 2018): weights times a constant."""

    def __call__(self, layer: nn.Module, _: object) -> None:
        layer.weight = layer.weight_orig * 0.5  # type: ignore[operator]


class CountsLooks(nn.Module):
    """A parametrization that keeps state while it trains."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("looks", torch.zeros(1))

    def forward(self, weight: Tensor) -> Tensor:
        if self.training:
            self.looks += 1
        return weight.triu()


def equal_rate(layer: nn.Linear) -> nn.Linear:
    weight = layer._parameters.pop("weight")
    layer.register_parameter("weight_orig", weight)
    layer.register_forward_pre_hook(EqualRate())
    return layer


def masked(layer: nn.Linear) -> nn.Linear:
    prune.l1_unstructured(layer, "weight", amount=0.3)
    return layer


def masked_twice(layer: nn.Linear) -> nn.Linear:
    prune.random_unstructured(masked(layer), "weight", amount=0.2)
    return layer


def counting(layer: nn.Linear) -> nn.Module:
    return parametrize.register_parametrization(layer, "weight", CountsLooks())


WAYS: dict[str, Callable[[nn.Linear], nn.Module]] = {
    "weight_norm": weight_norm,
    "spectral_norm": spectral_norm,
    "pruning": masked,
    "pruning twice": masked_twice,
    "a user's hook": equal_rate,
    "weight_norm, parametrized": parametrizations.weight_norm,
    "spectral_norm, parametrized": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "a user's parametrization": counting,
}
ways = pytest.mark.parametrize("way", WAYS.values(), ids=WAYS.keys())


def build(way: Callable[[nn.Linear], nn.Module]) -> nn.Module:
    return nn.Sequential(way(nn.Linear(16, 16)), nn.ReLU(), nn.Linear(16, 4))


def error(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


@ways
@pytest.mark.parametrize("calibration", [None, [X]], ids=["plain", "calibrated"])
@pytest.mark.parametrize("training", [True, False])
def test_a_checkpoint_that_never_ran(
    way: Callable[[nn.Linear], nn.Module], calibration: list[Tensor] | None, training: bool
) -> None:
    trained = build(way).train()
    for _ in range(10):
        trained(X)
    fresh = build(way).train(training)
    fresh.load_state_dict(trained.state_dict())
    before = copy.deepcopy(fresh.state_dict())
    small = vq.compress(fresh, vq.KM(k=64), calibration).eval()
    assert len(coded_weights(small)) == 2
    assert all(torch.equal(value, before[key]) for key, value in fresh.state_dict().items())
    with torch.no_grad():
        assert error(small(X), trained.eval()(X)) < 0.03
    assert all(holder.codebooks.requires_grad for holder in coded_weights(small).values())


@ways
@pytest.mark.parametrize("schemes", [vq.KM(k=64), {"2": vq.KM(k=64)}], ids=["all", "left float"])
def test_files(
    way: Callable[[nn.Linear], nn.Module],
    schemes: vq.Scheme | dict[str, vq.Scheme],
    tmp_path: Path,
) -> None:
    model = build(way).eval()
    model(X)
    small = vq.compress(model, schemes)
    vq.save(small, tmp_path / "m.vq")
    again = vq.load(tmp_path / "m.vq", build(way).eval())
    with torch.no_grad():
        assert torch.equal(again(X), small(X))


@pytest.mark.parametrize("way", [weight_norm, spectral_norm, masked])
def test_a_dtype_that_came_after_the_last_pass(way: Callable[[nn.Linear], nn.Module]) -> None:
    small = vq.compress(build(way).eval().double(), vq.KM(k=16))
    assert small(X.double()).dtype is torch.float64


def test_codebooks_train_where_the_parts_did_also_without_gradients() -> None:
    layer = weight_norm(nn.Linear(16, 16))
    with torch.no_grad():
        assert vq.compress(layer, vq.KM(k=4)).codebooks.requires_grad
    layer.requires_grad_(False)
    assert not vq.compress(layer, vq.KM(k=4)).codebooks.requires_grad


@pytest.mark.parametrize("calibration", [None, [X]], ids=["plain", "calibrated"])
def test_a_bias_that_pruning_computes(calibration: list[Tensor] | None) -> None:
    model = build(lambda layer: prune.l1_unstructured(layer, "bias", amount=0.5)).eval()
    model[0].bias_orig.data += 1  # type: ignore[union-attr, operator]
    small = vq.compress(model, vq.KM(k=64), calibration)
    with torch.no_grad():
        assert error(small(X), model(X)) < 0.03


def test_finetune_prune_and_compensate_leave_them_as_they_were() -> None:
    model = build(parametrizations.spectral_norm).train()
    before = copy.deepcopy(model.state_dict())
    loss = functional.mse_loss
    vq.finetune(vq.compress(model, vq.KM(k=4)), [X], teacher=model, loss=loss)
    vq.prune(model, [X] * 3, 0.3, layers=["2"], teacher=model, loss=loss)
    vq.compensate(vq.compress(model, {"0": vq.KM(k=4)}), model, [X])
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert all(module.training for module in model.modules())


def test_compensate_leaves_a_layer_that_computes_its_weight() -> None:
    model = nn.Sequential(nn.Linear(16, 16), nn.ReLU(), weight_norm(nn.Linear(16, 4))).eval()
    small = vq.compress(model, {"0": vq.KM(k=2)})
    before = copy.deepcopy(small.state_dict())
    with pytest.warns(UserWarning, match="'2' computes its weight anew"):
        vq.compensate(small, model, [X])
    assert all(torch.equal(value, before[key]) for key, value in small.state_dict().items())


def test_a_slot_of_what_a_users_hook_reads_is_named_as_it_is() -> None:
    (slot,) = find_slots(equal_rate(nn.Linear(4, 4))).values()
    assert (slot.name, slot.layer, slot.observable) == ("weight_orig", None, False)


@pytest.mark.parametrize(
    "norm", [weight_norm, parametrizations.weight_norm, parametrizations.spectral_norm]
)
@pytest.mark.parametrize("make", [lambda: nn.Linear(8, 8), lambda: nn.ConvTranspose1d(8, 8, 3)])
def test_nothing_of_the_norm_stays_that_no_pickle_takes(
    norm: Callable[[nn.Module], nn.Module], make: Callable[[], nn.Module]
) -> None:
    model = nn.Sequential(norm(make()), parametrizations.weight_norm(make()))
    small = vq.compress(model, {"0": vq.KM(k=4)})
    again = pickle.loads(pickle.dumps(small[0]))  # type: ignore[index]
    x = torch.randn(2, 8, 8)
    assert torch.equal(again(x), small[0](x))  # type: ignore[index]
    # The one that is left reads checkpoints as before.
    older = weight_norm(make())
    small[1].load_state_dict(older.state_dict())  # type: ignore[index]
    assert torch.allclose(small[1](x), older(x), atol=1e-6)  # type: ignore[index]
