"""``CodebookLinear``, and what every codebook layer does."""

import copy

import pytest
import torch
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin.nn import CodebookLinear

SCHEMES = [
    vq.KM(k=8),
    vq.KM(k=4, group=5, scale="row"),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=4, codebook_dtype="int8", scale="row"),
    vq.PQ(k=8, dim=5, axis="out", codebooks="tensor", codebook_dtype="bfloat16"),
    vq.RQ(k=8, stages=2, dim=8, codebook_dtype="float32"),
    vq.Binary(scale="row"),
]


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_it_computes_what_a_linear_with_the_decoded_weight_does(
    scheme: vq.Scheme, bias: bool, dtype: torch.dtype
) -> None:
    source = nn.Linear(18, 12, bias=bias).to(dtype)
    layer = CodebookLinear.from_float(source, scheme)
    weight = vq.quantize_weight(source.weight, scheme).decode()
    for shape in ((18,), (3, 18), (2, 3, 18), (0, 18)):
        x = torch.randn(shape).to(dtype)
        expected = functional.linear(x, weight, source.bias)
        if dtype == torch.float32:
            # The native kernels add in another order.
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=2e-6)
        else:
            assert torch.equal(layer(x), expected)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_to_float_gives_a_plain_linear_that_computes_the_same(scheme: vq.Scheme) -> None:
    layer = CodebookLinear.from_float(nn.Linear(18, 12).eval(), scheme)
    plain = layer.to_float()
    assert type(plain) is nn.Linear
    assert not plain.training
    assert plain.weight.is_contiguous()  # some exporters insist
    x = torch.randn(4, 18)
    assert torch.equal(plain.weight, layer.weight)
    assert torch.allclose(plain(x), layer(x), atol=1e-6)


def test_the_source_is_copied_not_shared() -> None:
    source = nn.Linear(8, 8)
    before = copy.deepcopy(source.state_dict())
    layer = CodebookLinear.from_float(source, vq.KM(k=4))
    assert layer.bias is not None
    with torch.no_grad():
        layer.bias.zero_()
        layer.codebooks.zero_()
    for key, value in source.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16])
def test_training_a_layer_leaves_the_codebook_weight_it_came_from(dtype: torch.dtype) -> None:
    source = nn.Linear(8, 8).to(dtype)
    small = vq.quantize_weight(source.weight, vq.KM(k=4, codebook_dtype="float32", scale="row"))
    before = small.decode()
    layer = CodebookLinear(source, small)
    assert layer.scale is not None
    with torch.no_grad():
        layer.codebooks.mul_(2)
        layer.scale.mul_(2)
    assert torch.equal(small.decode(), before)


def test_modes_and_frozen_weights_carry_over() -> None:
    source = nn.Linear(8, 8).eval()
    source.weight.requires_grad_(False)
    assert source.bias is not None
    source.bias.requires_grad_(False)
    layer = CodebookLinear.from_float(source, vq.KM(k=4, scale="row"))
    assert not layer.training
    assert not any(p.requires_grad for p in layer.parameters())
    assert CodebookLinear.from_float(nn.Linear(8, 8), vq.KM(k=4)).training


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_it_changes_dtype_with_its_model(scheme: vq.Scheme, dtype: torch.dtype) -> None:
    layer = CodebookLinear.from_float(nn.Linear(18, 12), scheme)
    weight = layer.weight.detach()
    codes = layer.codes.clone()
    layer = layer.to(dtype)
    x = torch.randn(3, 18).to(dtype)
    assert layer(x).dtype == layer.weight.dtype == dtype
    assert torch.equal(layer.codes, codes)
    assert torch.allclose(layer.weight.double(), weight.double(), rtol=0.03, atol=0.01)
    if dtype == torch.float64:
        assert torch.allclose(layer.weight, weight.double(), rtol=1e-6)


def test_it_goes_to_the_meta_device_and_comes_back_empty() -> None:
    layer = CodebookLinear.from_float(nn.Linear(18, 12), vq.PQ(k=4)).to("meta")
    assert layer(torch.ones(3, 18, device="meta")).shape == (3, 12)
    assert layer.to_empty(device="cpu").codes.device.type == "cpu"


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_copies_and_state_dicts_compute_the_same(scheme: vq.Scheme) -> None:
    layer = CodebookLinear.from_float(nn.Linear(18, 12), scheme)
    x = torch.randn(3, 18)
    clone = copy.deepcopy(layer)
    assert torch.equal(clone(x), layer(x))
    clone.codebooks.data.zero_()
    assert layer.weight.abs().sum() > 0
    other = CodebookLinear.from_float(nn.Linear(18, 12), scheme)
    assert not torch.equal(other(x), layer(x))
    other.load_state_dict(layer.state_dict())
    assert torch.equal(other(x), layer(x))


def test_repr_tells_what_matters() -> None:
    layer = CodebookLinear.from_float(nn.Linear(64, 32), vq.PQ(k=16, dim=4))
    assert repr(layer) == "CodebookLinear(64, 32, bias=True, pq(k=16,dim=4), 9.00 bits/weight)"
    with torch.no_grad():
        reduced = nn.Linear(8, 8, bias=False)
        reduced.weight.copy_(torch.ones(8, 8))
    text = repr(CodebookLinear.from_float(reduced, vq.KM(k=16)))
    assert "bias=False" in text
    assert "km(k=16), k=1" in text


def test_another_kind_of_layer_or_shape_is_refused() -> None:
    with pytest.raises(TypeError, match="CodebookLinear replaces Linear, got Conv2d"):
        CodebookLinear.from_float(nn.Conv2d(1, 1, 1), vq.KM())
    small = vq.quantize_weight(torch.randn(4, 5), vq.KM(k=2))
    with pytest.raises(ValueError, match=r"\(4, 5\), the layer's is \(5, 4\)"):
        CodebookLinear(nn.Linear(4, 5), small)


def test_the_codebook_weight_of_a_layer_is_what_it_computes_with() -> None:
    layer = CodebookLinear.from_float(nn.Linear(18, 12), vq.PQ(k=8))
    with torch.no_grad():
        layer.codebooks.mul_(1.2345678)
    small = layer.codebook_weight
    assert small.codebooks.dtype == torch.float16
    assert torch.equal(small.decode(), layer.weight)


@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
@pytest.mark.parametrize("shape", [(3, 17), (3, 20), (17,), ()])
def test_inputs_of_another_size_are_errors(scheme: vq.Scheme, shape: tuple[int, ...]) -> None:
    # A kernel alone would take 17 inputs for 18: sub-vectors of 4 may end in a shorter one.
    layer = vq.compress(nn.Linear(18, 12), scheme)
    for layer_ in (layer, torch.compile(layer, fullgraph=True, backend="eager")):
        with pytest.raises((RuntimeError, torch._dynamo.exc.TorchRuntimeError)):
            layer_(torch.zeros(shape))
