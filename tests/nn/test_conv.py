"""``CodebookConv1d/2d/3d`` against the float convolution with the decoded weight."""

from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional

import vq_plugin as vq
from vq_plugin import ops
from vq_plugin.nn import CodebookConv1d, CodebookConv2d, CodebookConv3d
from vq_plugin.nn.coded import Memory

KINDS = {
    1: (nn.Conv1d, CodebookConv1d),
    2: (nn.Conv2d, CodebookConv2d),
    3: (nn.Conv3d, CodebookConv3d),
}
CHANNELS = vq.PQ(k=4, dim=2, layout="channels")
SCHEMES = [
    *(vq.KM(k=4), vq.PQ(k=4, dim=4), vq.PQ(k=4, axis="out"), CHANNELS, vq.RQ(k=4), vq.Binary()),
]


def check(dims: int, scheme: vq.Scheme, settings: dict[str, Any], batched: bool = True) -> None:
    float_type, codebook_type = KINDS[dims]
    source = float_type(**settings)
    layer = codebook_type.from_float(source, scheme)
    small = vq.quantize_weight(source.weight, scheme)
    assert torch.equal(layer.weight, small.decode())
    x = torch.randn(settings["in_channels"], *[9, 8, 7][:dims])
    x = x.expand(2, *x.shape).clone() if batched else x
    result = layer(x)
    with torch.no_grad():
        source.weight.copy_(small.decode())
    assert torch.allclose(result, source(x), atol=1e-6)
    assert torch.allclose(layer.to_float()(x), source(x), atol=1e-6)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("kernel_size", "padding", "dilation"),
    [(3, 1, 1), (3, "same", 1), (2, "same", 1), (3, "same", 2), (3, "valid", 1), (3, 2, 2)],
)
def test_padding_of_every_kind(
    dims: int, padding_mode: str, kernel_size: int, padding: int | str, dilation: int
) -> None:
    settings = {
        "in_channels": 4,
        "out_channels": 6,
        "kernel_size": kernel_size,
        "padding": padding,
        "dilation": dilation,
        "padding_mode": padding_mode,
    }
    check(dims, vq.PQ(k=4, dim=4), settings)


@settings(max_examples=60)
@given(
    dims=st.integers(1, 3),
    scheme=st.sampled_from(SCHEMES),
    groups=st.sampled_from([1, 2, 4]),
    multiple=st.integers(1, 3),
    stride=st.integers(1, 2),
    kernel_size=st.integers(1, 3),
    padding=st.integers(0, 2),
    dilation=st.integers(1, 2),
    bias=st.booleans(),
    batched=st.booleans(),
)
def test_groups_strides_dilation_and_bias(
    dims: int,
    scheme: vq.Scheme,
    groups: int,
    multiple: int,
    stride: int,
    kernel_size: int,
    padding: int,
    dilation: int,
    bias: bool,
    batched: bool,
) -> None:
    settings = {
        "in_channels": 4,
        "out_channels": 4 * multiple,
        "kernel_size": kernel_size,
        "stride": stride,
        "padding": padding,
        "dilation": dilation,
        "groups": groups,
        "bias": bias,
    }
    check(dims, scheme, settings, batched)


@pytest.mark.parametrize("scheme", [*SCHEMES, vq.KM(k=4, scale="row")], ids=str)
def test_depthwise_with_uneven_kernels(scheme: vq.Scheme) -> None:
    settings = {
        "in_channels": 8,
        "out_channels": 8,
        "kernel_size": (3, 1),
        "stride": (2, 1),
        "padding": (1, 0),
        "groups": 8,
    }
    check(2, scheme, settings)


def test_half_precision_and_channels_last() -> None:
    source = nn.Conv2d(4, 8, 3, padding=1)
    layer = CodebookConv2d.from_float(source, vq.PQ(k=8))
    x = torch.randn(2, 4, 6, 6)
    expected = layer(x)
    assert torch.allclose(layer(x.to(memory_format=torch.channels_last)), expected, atol=1e-6)
    low = layer.to(torch.bfloat16)(x.bfloat16())
    assert low.dtype == torch.bfloat16
    assert torch.allclose(low.float(), expected, atol=0.1)


def test_repr_shows_the_settings_that_are_not_default() -> None:
    plain = CodebookConv2d.from_float(nn.Conv2d(8, 16, 3), vq.KM(k=4))
    text = repr(plain)
    assert text.startswith("CodebookConv2d(8, 16, kernel_size=(3, 3), bias=True, km(k=4), ")
    full = nn.Conv2d(8, 16, 3, 2, 1, 2, groups=4, bias=False, padding_mode="circular")
    text = repr(CodebookConv2d.from_float(full, vq.KM(k=4)))
    for part in (
        "stride=(2, 2)",
        "padding=(1, 1)",
        "dilation=(2, 2)",
        "groups=4",
        "padding_mode='circular'",
        "bias=False",
    ):
        assert part in text


@pytest.mark.parametrize(
    "scheme",
    [vq.PQ(k=16, dim=4), vq.PQ(k=16, dim=4, axis="out"), vq.KM(k=16), vq.KM(k=64)],
    ids=str,
)
@pytest.mark.parametrize("stride", [1, 2, (2, 3)])
@pytest.mark.parametrize("isa", ops.isas())
def test_convolutions_of_one_place(
    scheme: vq.Scheme, stride: int | tuple[int, int], isa: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    layer = vq.compress(nn.Conv2d(20, 33, 1, stride=stride), scheme)
    # Whether it would pay or not.
    monkeypatch.setattr(type(layer), "_kernel_runs", lambda *_: True)
    before = ops.isa()
    assert before is not None
    ops.use_isa(isa)
    try:
        for images, side in ((1, 5), (3, 13), (2, 1), (1, 40)):
            x = torch.randn(images, 20, side, side)
            expected = functional.conv2d(x, layer.weight, layer.bias, stride)
            last = x.to(memory_format=torch.channels_last)
            with torch.no_grad():
                found, of_one, of_last = layer(x), layer(x[0]), layer(last)
            torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(of_one, expected[0], rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(of_last, expected, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(layer(x), expected, rtol=1e-5, atol=1e-5)
            assert found.is_contiguous()
            assert of_last.is_contiguous(memory_format=torch.channels_last)
    finally:
        ops.use_isa(before)


@pytest.mark.parametrize("convolution", [nn.Conv1d, nn.Conv3d])
def test_convolutions_of_one_place_in_one_and_three_dimensions(
    convolution: type[nn.Module],
) -> None:
    layer = vq.compress(convolution(16, 512, 1), vq.PQ(k=16, dim=4))  # type: ignore[call-arg]
    x = torch.randn(2, 16, *(4,) * (1 if convolution is nn.Conv1d else 3))
    float_layer = layer.to_float()
    with torch.no_grad():
        torch.testing.assert_close(layer(x), float_layer(x), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 15, 4, 4), (2, 20, 4, 4), (16, 4), (2, 2, 16, 4, 4)])
def test_inputs_of_another_shape_are_errors(shape: tuple[int, ...]) -> None:
    layer = vq.compress(nn.Conv2d(16, 600, 1), vq.PQ(k=16, dim=4))
    with torch.no_grad(), pytest.raises(RuntimeError, match=r"Expected|expected"):
        layer(torch.zeros(shape))


def test_no_images_and_no_places() -> None:
    layer = vq.compress(nn.Conv2d(16, 600, 1), vq.PQ(k=16, dim=4))
    with torch.no_grad():
        assert layer(torch.zeros(0, 16, 4, 4)).shape == (0, 600, 4, 4)


@pytest.mark.filterwarnings("ignore:Using padding='same' with even kernel:UserWarning")
@pytest.mark.parametrize("dims", [1, 2, 3])
@pytest.mark.parametrize("padding_mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize(
    ("kernel_size", "padding", "stride", "dilation", "groups"),
    [
        (3, 1, 1, 1, 1),
        (2, "same", 1, 1, 1),
        (3, "valid", 2, 1, 2),
        (3, 2, 1, 2, 2),
        (1, 1, 1, 1, 1),
    ],
)
@pytest.mark.parametrize("batched", [False, True])
def test_convolutions_on_codes_are_those_with_the_weight(
    dims: int, padding_mode: str, kernel_size: int, padding: int | str, stride: int,
    dilation: int, groups: int, batched: bool,
) -> None:  # fmt: skip
    float_type, codebook_type = KINDS[dims]
    source = float_type(
        6 * groups, 32, kernel_size, stride, padding, dilation, groups, padding_mode=padding_mode
    )
    layer = codebook_type.from_float(source, vq.PQ(k=4, dim=4, layout="channels", scale="row"))
    x = torch.randn(*([2] if batched else []), 6 * groups, *[9, 8, 7][:dims])
    expected = layer.to_float()(x)
    if layer.geometry.axis == "channels":
        assert torch.allclose(layer._look_up(x), expected, atol=1e-5)
        with torch.no_grad():
            assert torch.allclose(layer._look_up(x), expected, atol=1e-5)
    assert torch.allclose(layer(x), expected, atol=1e-5)


def wide(**settings: Any) -> CodebookConv2d:
    """A convolution that is faster on codes, with no weight kept."""
    source = nn.Conv2d(256, 256, 3, padding=1, **settings)
    return CodebookConv2d.from_float(source, vq.PQ(k=16, dim=8, layout="channels"))


needs_wide_registers = pytest.mark.skipif(
    ops.isa() not in ("avx512", "avx2"), reason="costs are known for AVX-512 and AVX2"
)


@needs_wide_registers
@pytest.mark.parametrize("last", [False, True])
@pytest.mark.parametrize("memory", ["weight", "codes"])
def test_what_is_faster_on_codes_keeps_no_weight(last: bool, memory: Memory) -> None:
    layer = wide()
    vq.set_memory(layer, memory)
    x = torch.randn(1, 256, 8, 8)
    if last:
        x = x.contiguous(memory_format=torch.channels_last)
    with torch.no_grad():
        y = layer(x)
    assert layer._decoded.kept is None
    assert y.is_contiguous(memory_format=torch.channels_last) == last
    assert torch.allclose(y, layer.to_float()(x), atol=1e-4)


@needs_wide_registers
def test_a_precision_reaches_the_convolution() -> None:
    layer = wide()
    x = torch.randn(1, 256, 8, 8)
    expected = layer.to_float().double()(x.double())
    size = expected.square().mean().sqrt()
    errors = []
    for precision in ("exact", "high", "fast"):
        vq.set_precision(layer, precision)
        with torch.no_grad():
            errors.append(float((layer(x) - expected).square().mean().sqrt() / size))
    assert errors[0] < 1e-6 < errors[1] < 1e-4 < errors[2] < 2e-2


def test_inputs_without_a_layout_of_their_own_are_taken_too() -> None:
    layer = wide()
    x = torch.randn(1, 9, 256, 8).permute(0, 2, 1, 3)
    with torch.no_grad():
        assert torch.allclose(layer(x), layer.to_float()(x), atol=1e-4)


def test_convolutions_on_codes_compile_and_export_with_a_dynamic_batch() -> None:
    torch._dynamo.reset()
    small = nn.Sequential(wide(), nn.ReLU()).eval()
    x = torch.randn(2, 256, 6, 6)
    batch = {0: torch.export.Dim("batch")}
    program = torch.export.export(small, (x,), dynamic_shapes=(batch,), strict=False)
    names = [str(node.target) for node in program.graph.nodes]
    assert sum("vq.codebook_conv" in name for name in names) == 1
    compiled = torch.compile(small, fullgraph=True, backend="aot_eager")
    for images in (2, 3):
        x = torch.randn(images, 256, 6, 6)
        assert torch.allclose(program.module()(x), small(x), atol=1e-4)
        with torch.no_grad():
            assert torch.allclose(compiled(x), small(x), atol=1e-4)


def test_convolutions_on_codes_are_traced() -> None:
    layer = wide()
    traced = torch.jit.trace(layer, torch.randn(1, 256, 5, 5))
    x = torch.randn(2, 256, 7, 7)
    assert torch.allclose(traced(x), layer.to_float()(x), atol=1e-4)


def test_training_on_codes_moves_the_books_as_the_decoded_weight_would() -> None:
    layer = wide()
    x = torch.randn(1, 256, 6, 6)
    cotangent = torch.randn(1, 256, 6, 6)
    found = torch.autograd.grad((layer(x) * cotangent).sum(), [layer.codebooks, layer.bias])
    plain = functional.conv2d(x, layer._weight(), layer.bias, padding=1)
    expected = torch.autograd.grad((plain * cotangent).sum(), [layer.codebooks, layer.bias])
    for a, b in zip(found, expected, strict=True):
        assert torch.allclose(a, b, rtol=1e-3, atol=1e-2)
