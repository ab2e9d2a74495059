"""The operator that writes a weight out, against its definition: the same bytes everywhere."""

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from vq_plugin import ops
from vq_plugin.codebook import decode


@dataclass
class Coded:
    codes: Tensor  # (stages, rows, subspaces)
    codebooks: Tensor
    scale: Tensor | None
    settings: dict[str, Any]

    def definition(self) -> Tensor:
        dtype = self.settings["codebook_dtype"]

        def rounded(values: Tensor) -> Tensor:
            return values.to(dtype).to(values.dtype)

        return decode(
            self.codes,
            rounded(self.codebooks),
            None if self.scale is None else rounded(self.scale),
            shape=self.settings["shape"],
            axis="out" if self.settings["along_out"] else "in",
            group=self.settings["group"],
        )

    def packed(self) -> Tensor:
        return ops.pack_codes(self.codes, along_out=self.settings["along_out"])

    def write_out(self, codes: Tensor) -> Tensor:
        return ops.dequantize_codebook(codes, self.codebooks, self.scale, **self.settings)


def coded(
    shape: tuple[int, ...],
    k: int,
    dim: int,
    *,
    along_out: bool = False,
    shared: bool = True,
    stages: int = 1,
    group: int | None = None,
    scaled: bool = False,
    codebook_dtype: torch.dtype = torch.float16,
    seed: int = 0,
) -> Coded:
    columns = math.prod(shape[1:])
    rows, length = (columns, shape[0]) if along_out else (shape[0], columns)
    subspaces = -(-length // dim)
    groups = -(-rows // group) if group else 1
    generator = torch.Generator().manual_seed(seed)
    books = torch.randn((stages, groups, 1 if shared else subspaces, k, dim), generator=generator)
    return Coded(
        torch.randint(k, (stages, rows, subspaces), generator=generator).to(torch.uint8),
        books,
        torch.randn(rows, generator=generator) if scaled else None,
        {
            "shape": shape,
            "along_out": along_out,
            "group": group,
            "codebook_dtype": codebook_dtype,
        },
    )


@st.composite
def coded_weights(draw: st.DrawFn) -> Coded:
    columns = draw(st.lists(st.integers(1, 12), min_size=1, max_size=3))
    if draw(st.integers(0, 9)) == 0:
        columns = [draw(st.integers(100, 4200))]
    weight = coded(
        (draw(st.integers(1, 70)), *columns),
        draw(st.sampled_from([1, 2, 3, 15, 16, 17, 100, 256])),
        draw(st.one_of(st.just(1), st.integers(1, 20))),
        along_out=draw(st.booleans()),
        shared=draw(st.booleans()),
        stages=draw(st.integers(1, 3)),
        group=draw(st.sampled_from([None, 16, 5])),
        scaled=draw(st.booleans()),
        codebook_dtype=draw(st.sampled_from([torch.float32, torch.float16, torch.bfloat16])),
        seed=draw(st.integers(0, 1 << 30)),
    )
    if draw(st.booleans()):
        weight.codebooks = weight.codebooks.transpose(3, 4).contiguous().transpose(3, 4)
    return weight


@contextmanager
def threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def same_bytes(found: Tensor, expected: Tensor) -> bool:
    return (
        found.dtype == expected.dtype
        and found.shape == expected.shape
        and found.is_contiguous()
        and torch.equal(found.view(torch.int32), expected.contiguous().view(torch.int32))
    )


@pytest.mark.usefixtures("each_isa")
@settings(max_examples=100, deadline=None)
@given(coded_weights())
def test_the_bytes_are_those_of_the_definition(weight: Coded) -> None:
    expected = weight.definition()
    assert same_bytes(weight.write_out(weight.codes), expected)
    if weight.codebooks.shape[3] <= 16:
        assert same_bytes(weight.write_out(weight.packed()), expected)


# Enough work for two threads.
LARGE = [
    coded((256, 64, 3, 3), 16, 1),
    coded((256, 64, 3, 3), 200, 1, scaled=True),
    coded((255, 600), 16, 1, group=48),
    coded((256, 64, 3, 3), 16, 4, shared=False),
    coded((256, 64, 3, 3), 256, 4, stages=2),
    coded((256, 64, 3, 3), 16, 4, along_out=True),
    coded((250, 601), 100, 9, along_out=True, scaled=True),
]


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("weight", LARGE, ids=lambda w: f"{tuple(w.codebooks.shape)}")
def test_the_same_bytes_on_one_thread_and_on_more(weight: Coded) -> None:
    expected = weight.definition()
    forms = [weight.codes, weight.packed()] if weight.codebooks.shape[3] <= 16 else [weight.codes]
    for codes in forms:
        for count in (1, 2, 3):
            with threads(count):
                assert same_bytes(weight.write_out(codes), expected)


@pytest.mark.skipif(ops.isa() is None, reason="there are no native kernels")
@pytest.mark.parametrize("weight", LARGE, ids=lambda w: f"{tuple(w.codebooks.shape)}")
def test_what_layers_hold_needs_no_operator_of_torch(weight: Coded) -> None:
    codes = weight.packed() if weight.codebooks.shape[3] <= 16 else weight.codes
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        weight.write_out(codes)
    names = {event.name for event in seen.events()}
    assert "vq::dequantize_codebook" in names
    assert not names & {"aten::embedding", "aten::mul", "aten::add", "vq::unpack_codes"}


@settings(max_examples=50, deadline=None)
@given(coded_weights(), st.sampled_from([torch.int16, torch.int32, torch.int64]))
def test_codes_of_other_strides_and_dtypes(weight: Coded, dtype: torch.dtype) -> None:
    strided = weight.codes.permute(2, 0, 1).contiguous().permute(1, 2, 0)
    for codes in (strided, weight.codes.to(dtype)):
        assert same_bytes(weight.write_out(codes), weight.definition())


@settings(max_examples=50, deadline=None)
@given(coded_weights(), st.sampled_from([torch.float64, torch.float16, torch.bfloat16]))
def test_other_dtypes_of_codebooks(weight: Coded, dtype: torch.dtype) -> None:
    weight.codebooks = weight.codebooks.to(dtype)
    weight.scale = None if weight.scale is None else weight.scale.to(dtype)
    found = weight.write_out(weight.codes)
    assert found.dtype == dtype
    assert torch.equal(found, weight.definition())


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("shape", [(0, 5), (5, 0), (0,), (3, 0, 2)])
@pytest.mark.parametrize("along_out", [False, True])
def test_weights_without_values(shape: tuple[int, ...], along_out: bool) -> None:
    weight = coded(shape, 16, 4, along_out=along_out)
    assert weight.write_out(weight.codes).shape == shape


@pytest.mark.usefixtures("each_isa")
@pytest.mark.parametrize("along_out", [False, True])
@pytest.mark.parametrize("dim", [1, 4])
@pytest.mark.parametrize(("k", "code"), [(100, 255), (3, 15)])
def test_codes_beyond_the_codebook_read_nothing_beyond_it(
    k: int, code: int, dim: int, along_out: bool
) -> None:
    for shared in (False, True):
        weight = coded((40, 24), k, dim, along_out=along_out, shared=shared)
        centers = weight.codebooks.half().float()
        weight.codes[:] = code
        found = weight.write_out(weight.packed() if k <= 16 else weight.codes)
        assert bool(torch.isin(found, centers).all())


@pytest.mark.parametrize(
    ("name", "change"),
    [
        ("codes", lambda t: t[:, :-1]),
        ("codes", lambda t: t[0]),
        ("codes", lambda t: t.repeat(2, 1, 1)),
        ("codebooks", lambda t: t[:, :, :-1]),
        ("codebooks", lambda t: t[0]),
        ("scale", lambda t: t[:-1]),
    ],
)
def test_shapes_that_do_not_fit_are_errors(name: str, change) -> None:  # type: ignore[no-untyped-def]
    weight = coded((24, 40), 16, 4, shared=False, scaled=True)
    tensors = {"codes": weight.codes, "codebooks": weight.codebooks, "scale": weight.scale}
    tensors[name] = change(tensors[name])
    with pytest.raises((RuntimeError, ValueError)):
        ops.dequantize_codebook(**tensors, **weight.settings)  # type: ignore[arg-type]
