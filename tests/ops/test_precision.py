"""What ``precision`` promises for sub-vectors along the inputs, and single weights, k <= 16."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin import ops

PRECISIONS: tuple[ops.Precision, ...] = ("exact", "high", "fast")
INPUTS, OUTPUTS = 4096, 192


def fitted(scheme: vq.Scheme) -> nn.Module:
    torch.manual_seed(0)
    plain = nn.Linear(INPUTS, OUTPUTS, bias=False)
    nn.init.normal_(plain.weight, std=0.02)
    return vq.compress(plain, scheme).eval()


LAYERS = {
    str(scheme): fitted(scheme)
    for scheme in (
        vq.PQ(k=16, dim=2),
        vq.PQ(k=16, dim=4),
        vq.PQ(k=16, dim=8),
        vq.RQ(k=16, stages=2, dim=4),
    )
}


def normal() -> Tensor:
    return torch.randn(16, INPUTS, generator=torch.Generator().manual_seed(1))


def one_large_channel(factor: float) -> Tensor:
    x = normal()
    x[:, 77] *= factor
    return x


# Other activations, and channels of other sizes.
ACTIVATIONS = {
    "normal": normal(),
    "relu": normal().relu(),
    "pixels": normal().sigmoid(),
    "a channel x 8": one_large_channel(8.0),
    "a channel x 1000": one_large_channel(1e3),
    "a channel x 100000": one_large_channel(1e5),
    "tiny": normal() * 1e-30,
    "huge": normal() * 1e30,
}


def run(layer: nn.Module, x: Tensor, precision: ops.Precision = "exact") -> Tensor:
    layer.precision = precision
    with torch.no_grad():
        return layer._multiply(x)


def errors(layer: nn.Module, x: Tensor, *found: Tensor) -> list[float]:
    """Root mean square error of outputs over the root mean square of the right ones."""
    right = functional.linear(x.double(), layer.weight.detach().double())
    return [float((y.double() - right).norm() / right.norm()) for y in found]


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("scheme", LAYERS)
def test_exact_is_as_near_as_float32(scheme: str, activations: str) -> None:
    layer, x = LAYERS[scheme], ACTIVATIONS[activations]
    plain = functional.linear(x, layer.weight.detach())
    ours, floats = errors(layer, x, run(layer, x), plain)
    assert ours <= 2 * floats


@pytest.mark.parametrize("activations", ["normal", "relu", "pixels", "a channel x 8"])
@pytest.mark.parametrize("scheme", LAYERS)
def test_high_and_fast_keep_their_bounds(scheme: str, activations: str) -> None:
    layer, x = LAYERS[scheme], ACTIVATIONS[activations]
    high, fast = errors(layer, x, run(layer, x, "high"), run(layer, x, "fast"))
    assert high <= 1e-4
    assert fast <= 2e-2
    # The bounds say what is computed: fewer bits, not more.
    assert high > 1e-6
    assert fast > 1e-3


@pytest.mark.parametrize("activations", ACTIVATIONS)
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("scheme", LAYERS)
def test_the_same_bits_on_every_instruction_set(
    scheme: str, precision: ops.Precision, activations: str
) -> None:
    layer, x = LAYERS[scheme], ACTIVATIONS[activations]
    before = ops.isa()
    assert before is not None
    found = []
    for isa in ops.isas():
        ops.use_isa(isa)
        found.append(run(layer, x, precision).view(torch.int32))
    ops.use_isa(before)
    for other in found[1:]:
        assert torch.equal(found[0], other)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("precision", PRECISIONS)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_what_is_no_number_passes_as_in_the_float_layer(
    precision: ops.Precision, value: float
) -> None:
    layer, x = LAYERS["pq(k=16,dim=4)"], normal()
    clean = run(layer, x, precision)
    x[3, 17] = value
    found = run(layer, x, precision)
    expected = functional.linear(x, layer.weight)
    assert torch.equal(found[3].isnan(), expected[3].isnan())
    assert torch.equal(found[3].isposinf(), expected[3].isposinf())
    assert not bool(found[3].isfinite().any())
    others = [i for i in range(len(x)) if i != 3]
    assert torch.equal(found[others], clean[others])


@pytest.mark.parametrize("activations", ["normal", "relu", "pixels"])
def test_fast_single_weights(activations: str) -> None:
    layer, x = fitted(vq.KM(k=16)), ACTIVATIONS[activations]
    before = ops.isa()
    assert before is not None
    found = []
    for isa in ops.isas():
        ops.use_isa(isa)
        found.append(run(layer, x, "fast"))
    ops.use_isa(before)
    assert 1e-3 < errors(layer, x, found[0])[0] <= 2e-2
    for other in found[1:]:
        assert torch.equal(found[0].view(torch.int32), other.view(torch.int32))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_zeros_give_zeros(precision: ops.Precision) -> None:
    found = run(LAYERS["pq(k=16,dim=4)"], torch.zeros(3, INPUTS), precision)
    assert torch.equal(found, torch.zeros(3, OUTPUTS))


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_book_of_one_center(precision: ops.Precision) -> None:
    layer = vq.compress(nn.Linear(64, 48), vq.PQ(k=1, dim=4)).eval()
    x = torch.randn(5, 64)
    torch.testing.assert_close(run(layer, x, precision), layer(x), rtol=1e-4, atol=1e-5)


def test_operators_take_no_other_number() -> None:
    layer, x = LAYERS["pq(k=16,dim=4)"], normal()
    operands = (x, layer._codes, layer.codebooks, None, None, *layer._settings)
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"0 \(exact\), 1 \(high\) or 2"):
        torch.ops.vq.codebook_linear.inference(*operands, 3)
