"""Layers run a kernel only where it is expected to be as fast as the float layer."""

import copy
import pickle

import pytest
import torch
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin import ops

pytestmark = pytest.mark.skipif(ops.native() is None, reason="there are no native kernels")


@pytest.fixture(autouse=True)
def _restore_isa():  # type: ignore[no-untyped-def]
    before = ops.isa()
    yield
    assert before is not None
    ops.use_isa(before)


def test_a_layer_that_the_kernel_serves_holds_no_float_weight() -> None:
    layer = vq.compress(nn.Linear(512, 512), vq.PQ(k=16, dim=4))
    with torch.no_grad():
        for batch in (1, 8, 128):
            layer(torch.randn(batch, 512))
    assert layer._decoded.kept is None


def test_int8_centers_are_rounded_once_and_follow_their_codebooks() -> None:
    layer = vq.compress(nn.Linear(512, 512), vq.PQ(k=16, dim=4, codebook_dtype="int8"))
    x = torch.randn(1, 512)
    with torch.no_grad():
        layer(x)
        before = layer._int8_centers.kept
        layer(x)
        assert before is layer._int8_centers.kept is not None
        layer.codebooks.data.mul_(1.37)
        expected = functional.linear(x, layer.weight, layer.bias)
        torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)


def test_a_layer_that_plain_code_would_slow_down_keeps_its_weight() -> None:
    ops.use_isa("scalar")
    layer = vq.compress(nn.Linear(512, 512), vq.KM(k=16))
    x = torch.randn(64, 512)
    with torch.no_grad():
        assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))
        assert layer._decoded.kept is not None
        # ... and follows its codebooks.
        layer.codebooks.mul_(2)
        assert torch.equal(layer(x), functional.linear(x, layer.weight, layer.bias))


def test_many_centers_on_few_rows_do_not_pay() -> None:
    # Each table of 256 products would serve 300 look-ups.
    layer = vq.compress(nn.Linear(64, 300), vq.PQ(k=256, dim=8))
    wide = vq.compress(nn.Linear(64, 8192), vq.PQ(k=256, dim=8))
    x = torch.randn(128, 64)
    with torch.no_grad():
        layer(x)
        wide(x)
    assert layer._decoded.kept is not None
    assert wide._decoded.kept is None


def test_training_keeps_nothing() -> None:
    ops.use_isa("scalar")
    layer = vq.compress(nn.Linear(64, 64), vq.KM(k=16))
    layer(torch.randn(64, 64)).sum().backward()
    assert layer.codebooks.grad is not None
    assert layer._decoded.kept is None


def test_pointwise_convolutions_hold_no_float_weight_where_the_kernel_pays() -> None:
    ops.use_isa(ops.isas()[0])
    layer = vq.compress(nn.Conv2d(512, 2048, 1), vq.PQ(k=16, dim=4))
    with torch.no_grad():
        layer(torch.randn(1, 512, 7, 7))
    assert (layer._decoded.kept is None) == (ops.isa() in ("avx512", "avx2"))


@pytest.mark.parametrize("how", ["deepcopy", "pickle", "cloudpickle"])
@pytest.mark.parametrize(
    ("layer", "x"),
    [
        (nn.Linear(64, 32), torch.randn(1, 64)),
        (nn.Conv2d(16, 16, 3), torch.randn(1, 16, 8, 8)),
        (nn.LSTM(256, 256), torch.randn(2, 1, 256)),
    ],
    ids=["linear", "convolution", "recurrent"],
)
def test_layers_that_have_run_are_copied_in_every_way(
    layer: nn.Module, x: torch.Tensor, how: str
) -> None:
    small = vq.compress(layer, vq.PQ(k=16, dim=4, layout="channels"))
    with torch.no_grad():
        small(x)
        if how == "deepcopy":
            again = copy.deepcopy(small)
        else:
            # Ray, joblib and MLflow send models by the latter.
            package = pytest.importorskip(how)
            again = pickle.loads(package.dumps(small))
        one, two = small(x), again(x)
    assert torch.equal(*(y[0] if isinstance(y, tuple) else y for y in (one, two)))
