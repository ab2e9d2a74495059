"""Codes are places in codebooks: nothing averages them, and no others are taken."""

import copy
import io
import warnings
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, stack_module_state, vmap
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

import vq_plugin as vq
from tests.nn.decoding import CASES, assert_near
from vq_plugin.nn import coded_weights

SCHEMES = [vq.KM(k=5), vq.PQ(k=16, dim=4), vq.KM(k=200), vq.RQ(k=300, stages=2, dim=4)]
MODELS = {**{name: layer for name, (layer, _) in CASES.items()}, "table": nn.Embedding(400, 8)}
INPUTS = {**{name: x for name, (_, x) in CASES.items()}, "table": torch.arange(20)}


@pytest.fixture(params=MODELS)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    return found


def codes_of(model: nn.Module) -> list[Tensor]:
    return [coded.codes for coded in coded_weights(model).values()]


def same(one: list[Tensor], other: list[Tensor]) -> bool:
    return all(torch.equal(a, b) for a, b in zip(one, other, strict=True))


def moved(model: nn.Module) -> nn.Module:
    result = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in result.parameters():
            parameter.mul_(1.5)
    return result


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize(
    "settings",
    [
        {"multi_avg_fn": get_ema_multi_avg_fn(0.9)},
        {"avg_fn": lambda old, new, _: 0.9 * old + 0.1 * new},
        {},
    ],
    ids=["ema", "function", "mean"],
)
@torch.no_grad()
def test_averages_over_buffers_leave_codes_alone(
    name: str, scheme: vq.Scheme, settings: dict[str, Any]
) -> None:
    small = vq.compress(MODELS[name], scheme)
    before = codes_of(small)
    averaged = AveragedModel(small, use_buffers=True, **settings)
    for _ in range(3):
        averaged.update_parameters(small)
    assert same(codes_of(averaged.module), before)
    assert_near(averaged(INPUTS[name]), small(INPUTS[name]))
    averaged.update_parameters(moved(small))
    assert same(codes_of(averaged.module), before)
    assert not torch.equal(averaged(INPUTS[name]), small(INPUTS[name]))


@torch.no_grad()
def test_averages_into_a_state_dict_leave_codes_alone(name: str) -> None:
    for scheme in SCHEMES:
        small = vq.compress(MODELS[name], scheme)
        shadow = moved(small)
        for old, new in zip(shadow.state_dict().values(), small.state_dict().values(), strict=True):
            old.copy_(0.5 * old + 0.5 * new)
        assert same(codes_of(shadow), codes_of(small))


SPOILED: dict[str, tuple[Callable[[Tensor], Tensor], str]] = {
    "average": (lambda codes: (codes.float() + codes.float().flip(1)) / 2, "average"),
    "whole numbers of a float dtype": (lambda codes: codes.double(), "average"),
    "too large": (lambda codes: codes.int() + 300, "outside the codebook"),
    "negative": (lambda codes: codes.int() - 1000, "outside the codebook"),
    "another size": (lambda codes: codes[:, 1:], "size mismatch"),
}


@pytest.mark.parametrize("how", SPOILED)
def test_other_codes_are_an_error_that_names_the_layer(how: str) -> None:
    spoil, message = SPOILED[how]
    model = nn.Sequential(nn.Linear(8, 8), nn.Sequential(nn.GRUCell(8, 8)), nn.Embedding(9, 8))
    small = vq.compress(model, vq.PQ(k=16, dim=4))
    before = codes_of(small)
    for key in [key for key in small.state_dict() if key.endswith("codes")]:
        state = small.state_dict()
        state[key] = spoil(state[key])
        with pytest.raises(RuntimeError, match=rf"{key}.*{message}"):
            small.load_state_dict(state)
    assert same(codes_of(small), before)


@torch.no_grad()
def test_a_model_goes_to_the_meta_device_and_comes_back(name: str) -> None:
    x = INPUTS[name]
    for scheme in SCHEMES:
        small = vq.compress(MODELS[name], scheme)
        expected, state = small(x), copy.deepcopy(small.state_dict())
        assigned, emptied = copy.deepcopy(small).to("meta"), copy.deepcopy(small).to("meta")
        for _ in range(2):
            assert assigned(x.to("meta")).shape == expected.shape
        assigned.load_state_dict(state, assign=True)
        assert torch.equal(assigned(x), expected)
        emptied.to_empty(device="cpu")
        assert emptied(x).shape == expected.shape  # whatever was in memory
        emptied.load_state_dict(state)
        assert torch.equal(emptied(x), expected)
        assert emptied.to_empty(device="cpu")(x).shape == expected.shape


def test_codes_without_values_are_refused() -> None:
    small = vq.compress(nn.Linear(8, 8), vq.KM(k=4))
    state = copy.deepcopy(small).to("meta").state_dict()
    with pytest.raises(RuntimeError, match="codes is on the meta device"):
        small.load_state_dict(state)


@torch.no_grad()
def test_a_state_dict_takes_the_place_of_what_a_model_holds(name: str) -> None:
    x = INPUTS[name]
    for scheme in SCHEMES:
        small, other = (vq.compress(MODELS[name], scheme, seed=seed) for seed in (0, 1))
        other = moved(other)
        before = small(x)
        assert_near(functional_call(small, other.state_dict(), (x,)), other(x))
        assert torch.equal(small(x), before)
        file = io.BytesIO()
        torch.save(other.state_dict(), file)
        file.seek(0)
        small.load_state_dict(torch.load(file, weights_only=True))
        assert torch.equal(small(x), other(x))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@torch.no_grad()
def test_channels_last_is_for_images(scheme: vq.Scheme) -> None:
    for build, x, last in (
        (nn.Conv2d, torch.randn(2, 8, 5, 5), torch.channels_last),
        (nn.Conv3d, torch.randn(2, 8, 5, 5, 5), torch.channels_last_3d),
    ):
        model = nn.Sequential(build(8, 8, 3), nn.ReLU(), build(8, 16, 1))
        small = vq.compress(model, scheme)
        expected = small(x)
        parameters = list(small.parameters())
        small.to(memory_format=last)
        assert all(a is b for a, b in zip(small.parameters(), parameters, strict=True))
        for input in (x, x.to(memory_format=last)):
            assert_near(small(input), expected)
        assert small.double()(x.double()).dtype is torch.float64
        assert small.share_memory()(x.double()).dtype is torch.float64


@pytest.mark.filterwarnings("ignore:.*batching rule:UserWarning")
@pytest.mark.parametrize("name", ["linear", "table", "transposed"])
def test_codes_of_stacked_models_are_stacked_or_missed(name: str) -> None:
    build, x = {
        "linear": (lambda: nn.Linear(8, 8), torch.randn(3, 8)),
        "table": (lambda: nn.Embedding(20, 8), torch.arange(5)),
        "transposed": (lambda: nn.ConvTranspose1d(4, 4, 3), torch.randn(2, 4, 9)),
    }[name]
    models = [vq.compress(nn.Sequential(build()), vq.KM(k=16)).eval() for _ in range(3)]
    parameters, buffers = stack_module_state(models)
    with pytest.warns(UserWarning, match="stack the tensors of their state_dicts"):
        vmap(lambda state: functional_call(models[0], (state, buffers), (x,)))(parameters)
    states = [model.state_dict() for model in models]
    stack = {key: torch.stack([state[key] for state in states]) for key in states[0]}
    with warnings.catch_warnings():
        warnings.filterwarnings("error", ".*stack_module_state")
        outputs = vmap(lambda state: functional_call(models[0], state, (x,)))(stack)
        # Codebooks of one model are nobody's.
        vmap(models[0])(torch.stack([x, x]))
    for output, model in zip(outputs, models, strict=True):
        assert_near(output, model(x))
