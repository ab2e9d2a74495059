"""The convolution on codes against torch's with the decoded weight, in float64."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional

from tests.ops.problems import Operands
from vq_plugin import ops
from vq_plugin.codebook import decode

CONVOLVE = {1: functional.conv1d, 2: functional.conv2d, 3: functional.conv3d}
LAST = {4: torch.channels_last, 5: torch.channels_last_3d}


class Problem(Operands):
    @property
    def weight(self) -> Tensor:
        """The weight in float64, from the definition in vq_plugin.codebook."""
        at, dtype = self.settings, self.settings["codebook_dtype"]
        return decode(
            self.codes,
            self.codebooks.to(dtype).double(),
            None if self.scale is None else self.scale.to(dtype).double(),
            shape=(at["out_channels"], self.input.shape[1] // at["groups"], *at["kernel_size"]),
            axis="channels",
        )

    def expected(self, input: Tensor, weight: Tensor) -> Tensor:
        names = ("stride", "padding", "dilation", "groups")
        chosen = {name: self.settings[name] for name in names}
        bias = None if self.bias is None else self.bias.double()
        result: Tensor = CONVOLVE[input.dim() - 2](input, weight, bias, **chosen)
        return result

    def run(self, precision: ops.Precision = "exact") -> Tensor:
        packs = ops.packs(self.codebooks.shape[3])
        codes = ops.pack_codes(self.codes) if packs else self.codes
        return ops.codebook_conv(
            self.input, codes, self.codebooks, self.scale, self.bias, precision=precision,
            **self.settings,
        )  # fmt: skip


@st.composite
def problems(draw: st.DrawFn) -> Problem:
    space = draw(st.integers(1, 3))
    groups = draw(st.sampled_from([1, 1, 2, 3]))
    k, dim = draw(st.sampled_from([1, 3, 16, 16, 40])), draw(st.integers(1, 9))
    channels = draw(st.integers(1, 60 if space < 3 else 20))
    outputs = groups * draw(st.sampled_from([16, 32] if draw(st.booleans()) else [1, 5, 23]))
    stages = draw(st.integers(1, 2))

    def each(least: int, most: int) -> list[int]:
        return [draw(st.integers(least, most)) for _ in range(space)]

    kernel, stride, dilation, padding = each(1, 3), each(1, 3), each(1, 2), each(0, 3)
    reach = [d * (w - 1) + 1 for d, w in zip(dilation, kernel, strict=True)]
    size = [max(n, r - 2 * p) for n, r, p in zip(each(1, 8), reach, padding, strict=True)]
    images = draw(st.integers(1, 3))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 1 << 30)))

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator)

    pieces = -(-channels // dim)
    books = draw(st.sampled_from([1, pieces]))
    input = normal(images, groups * channels, *size)
    if draw(st.booleans()):
        # As after a ReLU: many zeros, whole places of them.
        input = input.relu() * (normal(images, 1, *size) > 0)
    if space > 1 and draw(st.booleans()):
        input = input.contiguous(memory_format=LAST[input.dim()])
    elif draw(st.booleans()):
        input = torch.cat([input, input], -1)[..., : size[-1]]
    subspaces = torch.Size(kernel).numel() * pieces
    return Problem(
        input,
        torch.randint(k, (stages, outputs, subspaces), generator=generator).to(torch.uint8),
        normal(stages, 1, books, k, dim),
        normal(outputs).abs() + 0.5 if draw(st.booleans()) else None,
        normal(outputs) if draw(st.booleans()) else None,
        {
            "out_channels": outputs,
            "kernel_size": kernel,
            "stride": stride,
            "padding": padding,
            "dilation": dilation,
            "groups": groups,
            "codebook_dtype": draw(st.sampled_from([torch.float32, torch.float16])),
        },
    )


@pytest.mark.usefixtures("each_isa")
@settings(max_examples=150, deadline=None)
@given(problems())
def test_it_is_torchs_convolution(at: Problem) -> None:
    expected = at.expected(at.input.double(), at.weight)
    found = at.run()
    assert found.dtype == torch.float32
    assert found.shape == expected.shape
    size = at.expected(at.input.double().abs(), at.weight.abs()).abs() + 8
    stages = at.codebooks.shape[0]
    assert bool(((found.double() - expected).abs() <= 2e-6 * stages * size).all())


@pytest.mark.usefixtures("each_isa")
@settings(max_examples=60, deadline=None)
@given(problems())
def test_the_output_has_the_memory_format_of_the_input(at: Problem) -> None:
    last = LAST.get(at.input.dim())
    found = at.run()
    if at.input.is_contiguous():
        assert found.is_contiguous()
    elif last is not None and at.input.is_contiguous(memory_format=last):
        assert found.is_contiguous(memory_format=last)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize(("precision", "error"), [("exact", 4e-7), ("high", 1e-4), ("fast", 2e-2)])
@pytest.mark.parametrize(("channels", "dim", "side"), [(64, 4, 9), (36, 8, 7), (256, 4, 5)])
def test_errors_stay_below_what_a_precision_promises(
    precision: ops.Precision, error: float, channels: int, dim: int, side: int
) -> None:
    at = wide(channels, dim, side)
    expected = at.expected(at.input.double(), at.weight)
    off = (at.run(precision).double() - expected).square().mean().sqrt()
    assert off <= error * expected.square().mean().sqrt()


def wide(channels: int, dim: int, side: int, outputs: int = 48) -> Problem:
    pieces = -(-channels // dim)
    return Problem(
        torch.randn(1, channels, side, side),
        torch.randint(16, (1, outputs, 9 * pieces), dtype=torch.uint8),
        torch.randn(1, 1, pieces, 16, dim),
        None,
        None,
        {
            "out_channels": outputs,
            "kernel_size": [3, 3],
            "stride": [1, 1],
            "padding": [1, 1],
            "dilation": [1, 1],
            "groups": 1,
            "codebook_dtype": torch.float32,
        },
    )


@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
def test_the_same_bytes_on_every_instruction_set_and_any_number_of_threads(
    precision: ops.Precision,
) -> None:
    # Several strips of lines; one, whose row blocks several threads share; places that need floats.
    several, shared, odd = wide(24, 4, 70), wide(200, 4, 6, 512), wide(64, 4, 8)
    odd.input[0, 3, 2, 2] = 1e8
    threads, isa = torch.get_num_threads(), ops.isa()
    try:
        for at in (several, shared, odd):
            results = []
            for name in ops.isas():
                ops.use_isa(name)
                for count in (1, 2, 3):
                    torch.set_num_threads(count)
                    results.append(at.run(precision))
            assert all(torch.equal(results[0], other) for other in results[1:])
    finally:
        torch.set_num_threads(threads)
        if isa is not None:
            ops.use_isa(isa)


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("precision", ["exact", "high", "fast"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_what_is_not_finite_reaches_the_places_that_see_it_and_no_others(
    precision: ops.Precision, value: float
) -> None:
    at = wide(16, 4, 9)
    clean = at.run(precision)
    at.input[0, 5, 4, 4] = value
    found = at.run(precision)
    reached = torch.zeros(9, 9, dtype=torch.bool)
    reached[3:6, 3:6] = True
    assert not found[..., reached].isfinite().any()
    assert torch.equal(found[..., ~reached], clean[..., ~reached])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16])
def test_other_dtypes_run_in_torch(dtype: torch.dtype) -> None:
    at = wide(8, 4, 5)
    at = replace(at, input=at.input.to(dtype), codebooks=at.codebooks.to(dtype))
    found = at.run()
    assert found.dtype == dtype
    expected = at.expected(at.input.double(), at.weight)
    assert torch.allclose(found.double(), expected, rtol=0.05, atol=0.5)


def test_dtypes_that_differ_are_an_error() -> None:
    at = wide(8, 4, 5)
    with pytest.raises(RuntimeError):
        replace(at, input=at.input.double()).run()


def test_it_autocasts_as_a_convolution_does() -> None:
    at = wide(8, 4, 5)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = replace(at, input=at.input.bfloat16()).run()
    assert found.dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda t: t[:, :-16]),
        ("codes", lambda t: t[:, :, :-1]),
        ("codebooks", lambda t: t[:, :, :-1]),
        ("codebooks", lambda t: t[0]),
        ("scale", lambda t: torch.ones(3)),
        ("bias", lambda t: torch.ones(3)),
        ("input", lambda t: t[:, :-5]),
        ("input", lambda t: t[0, 0, 0]),
    ],
)
def test_shapes_that_do_not_fit_are_errors(name: str, change) -> None:  # type: ignore[no-untyped-def]
    at = wide(24, 4, 5)
    at.run()
    at = replace(at, **{name: change(getattr(at, name))})
    with pytest.raises((RuntimeError, IndexError, KeyError, ValueError)):
        at.run()


def arguments(at: Problem) -> tuple[Any, ...]:
    at.input.requires_grad_()
    at.codebooks.requires_grad_()
    s = at.settings
    return (
        at.input, ops.pack_codes(at.codes), at.codebooks, None, torch.randn(s["out_channels"]),
        s["out_channels"], s["kernel_size"], s["stride"], s["padding"], s["dilation"], s["groups"],
        s["codebook_dtype"], 0,
    )  # fmt: skip


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_opcheck() -> None:
    torch.library.opcheck(torch.ops.vq.codebook_conv.default, arguments(wide(10, 4, 5)))


@pytest.mark.parametrize(("channels", "scaled"), [(10, False), (8, True)])
def test_gradients_are_those_of_the_decoded_convolution(channels: int, scaled: bool) -> None:
    at = wide(channels, 4, 5)
    if scaled:
        at.scale = torch.rand(48) + 0.5
    at.bias = torch.randn(48)
    wanted = [t for t in (at.input, at.codebooks, at.scale, at.bias) if t is not None]
    for tensor in wanted:
        tensor.requires_grad_()
    cotangent = torch.randn(1, 48, 5, 5)
    found = torch.autograd.grad((at.run() * cotangent).sum(), wanted)
    expected = torch.autograd.grad(
        (at.expected(at.input.double(), at.weight) * cotangent).sum(), wanted
    )
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-3)
