"""Derivatives of every kind are those of the float layer with the decoded weight."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.func import functional_call, grad, hessian, jacfwd, jacrev, jvp, vmap

import vq_plugin as vq
from tests.nn.decoding import CASES, SCHEMES, assert_near, pair
from vq_plugin import ops
from vq_plugin.codebook import decode
from vq_plugin.nn import CodebookEmbedding

Model = Callable[[Tensor], Tensor]


def dual(model: Model, x: Tensor) -> Tensor:
    with forward_ad.dual_level():
        tangent = forward_ad.unpack_dual(model(forward_ad.make_dual(x, torch.ones_like(x)))).tangent
    assert tangent is not None
    return tangent


def twice(model: Model, x: Tensor) -> Tensor:
    x = x.clone().requires_grad_()
    (first,) = torch.autograd.grad(model(x).square().sum(), x, create_graph=True)
    (second,) = torch.autograd.grad(first.square().sum(), x)
    return second


WAYS: dict[str, Callable[[Model, Tensor], Any]] = {
    "jvp": lambda model, x: jvp(model, (x,), (torch.ones_like(x),)),
    "jvp without gradients": lambda model, x: torch.no_grad()(jvp)(
        model, (x,), (torch.ones_like(x),)
    ),
    "dual numbers": dual,
    "jacrev": lambda model, x: jacrev(model)(x[:1]),
    "jacfwd": lambda model, x: jacfwd(model)(x[:1]),
    "hessian": lambda model, x: hessian(lambda one: model(one).square().sum())(x[:1]),
    "vmap": lambda model, x: vmap(lambda one: model(one.unsqueeze(0)))(x),
    "per sample": lambda model, x: vmap(grad(lambda one: model(one.unsqueeze(0)).square().sum()))(
        x
    ),
    "a gradient of a gradient": twice,
}


# Torch's own cells fail in vmap, or warn.
ALL_WAYS = [(name, way) for name in CASES for way in WAYS
            if name != "cell" or way not in ("vmap", "per sample")]  # fmt: skip


@pytest.mark.parametrize("scheme", SCHEMES[1:3], ids=str)
@pytest.mark.parametrize(("name", "way"), ALL_WAYS)
@pytest.mark.filterwarnings("error::UserWarning")  # torch's of slow batching rules
def test_derivatives_in_the_input(name: str, scheme: vq.Scheme, way: str) -> None:
    small, expected, x = pair(name, scheme)
    for frozen in (False, True):
        small.requires_grad_(not frozen)
        assert_near(WAYS[way](small, x), WAYS[way](expected, x), 1e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("name", CASES)
def test_derivatives_in_the_parameters(name: str, scheme: vq.Scheme) -> None:
    small, _, x = pair(name, scheme)
    parameters = dict(small.named_parameters())
    directions = {key: torch.randn_like(value) for key, value in parameters.items()}

    def loss(values: dict[str, Tensor]) -> Tensor:
        output: Tensor = functional_call(small, values, (x,))
        return output.square().mean()

    # Of ordinary reverse mode, which tests/nn/test_training.py holds against finite differences.
    expected = torch.autograd.grad(loss(parameters), list(parameters.values()))
    found = grad(loss)(parameters)
    assert_near(list(found.values()), list(expected))
    along = sum((g * directions[key]).sum() for key, g in found.items())
    assert_near(jvp(loss, (parameters,), (directions,))[1], along, 1e-3)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_derivatives_of_an_embedding(scheme: vq.Scheme) -> None:
    source = nn.Embedding(20, 12, padding_idx=3)
    layer = CodebookEmbedding.from_float(source, scheme)
    index = torch.tensor([[1, 3], [19, 1]])
    parameters = dict(layer.named_parameters())

    def loss(values: dict[str, Tensor], rows: Tensor) -> Tensor:
        output: Tensor = functional_call(layer, values, (rows,))
        return output.square().mean()

    def whole(values: dict[str, Tensor], rows: Tensor) -> Tensor:
        codebooks = layer._rounded_codebooks(values["codebooks"])
        scale = values.get("scale")
        weight = decode(
            layer.codes,
            codebooks,
            None if scale is None else layer._rounded_scale(scale),
            shape=(20, 12),
            axis=layer.geometry.axis,
        )
        weight = weight.masked_fill(torch.arange(20).unsqueeze(1) == 3, 0)
        return nn.functional.embedding(rows, weight).square().mean()

    for way in (
        lambda f: grad(f)(parameters, index),
        lambda f: jvp(lambda p: f(p, index), (parameters,), (parameters,)),
        lambda f: vmap(grad(f), (None, 0))(parameters, index),
    ):
        assert_near(way(loss), way(whole))


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_derivatives_of_the_operators_themselves(scheme: vq.Scheme) -> None:
    layer = vq.compress(nn.Linear(12, 8), scheme)
    x = torch.randn(3, 12)
    tables = (layer._rounded_codebooks(layer.codebooks).detach(), layer.scale)
    tables = tuple(None if t is None else t.detach() for t in tables)
    linear = torch.ops.vq.codebook_linear
    settings = layer._settings[1:3]

    def weight(codebooks: Tensor) -> Tensor:
        found: Tensor = torch.ops.vq.dequantize_codebook(
            layer._codes, codebooks, tables[1], [8, 12], *settings, torch.float32
        )
        return found

    def whole(codebooks: Tensor) -> Tensor:
        return decode(layer.codes, codebooks, tables[1], shape=(8, 12), axis=layer.geometry.axis)

    def product(x: Tensor) -> Tensor:
        found: Tensor = linear(
            x, layer._codes, tables[0], tables[1], None, 8, *settings, torch.float32, 0
        )
        return found

    direction = torch.randn_like(tables[0])
    for way in (
        lambda f: jvp(f, (tables[0],), (direction,)),
        lambda f: jacrev(f)(tables[0]),
        lambda f: jacfwd(f)(tables[0]),
    ):
        assert_near(way(weight), way(whole))
    plain = nn.functional.linear
    decoded = whole(tables[0])
    for way in WAYS.values():
        assert_near(way(product, x), way(lambda x: plain(x, decoded), x))


@pytest.mark.parametrize("name", ["linear", "pointwise", "conv2d", "cell"])
@pytest.mark.parametrize("scheme", SCHEMES[:3], ids=str)
def test_a_pass_in_inference_mode_leaves_nothing_that_gradients_cannot_use(
    name: str, scheme: vq.Scheme
) -> None:
    small, expected, x = pair(name, scheme)
    small.requires_grad_(False)
    state = copy.deepcopy(small.state_dict())
    with torch.inference_mode():
        small(x)
        small.load_state_dict(state)
        small(x)
    found, wanted = (torch.autograd.grad(m(y := x.clone().requires_grad_()).sum(), y)
                     for m in (small, expected))  # fmt: skip
    assert_near(found, wanted)


def test_transforms_are_seen(recwarn: pytest.WarningsRecorder) -> None:
    seen: list[bool] = []
    assert not ops.transforming()
    vmap(lambda x: seen.append(ops.transforming()) or x)(torch.zeros(2))
    grad(lambda x: seen.append(ops.transforming()) or x)(torch.zeros(()))
    with forward_ad.dual_level():
        seen.append(ops.transforming())
    assert seen == [True] * 3
    assert not ops.transforming()
