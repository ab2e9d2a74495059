"""Decode against the formula in a plain loop, and sizes against counting by hand."""

import math

import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

import vq_plugin as vq
from vq_plugin.codebook import decode
from vq_plugin.coding.bits import code_bits

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


def formula(
    codes: Tensor,
    codebooks: Tensor,
    scale: Tensor | None,
    shape: tuple[int, ...],
    axis: str,
    group: int | None,
) -> tuple[Tensor, Tensor]:
    """``W[r, s·dim + j]`` one by one in Python floats, and the sum of absolute terms."""
    stages, groups, books, _, dim = codebooks.shape
    table, index = codebooks.double().tolist(), codes.tolist()
    other = math.prod(shape[1:])
    rows, length = (shape[0], other) if axis == "in" else (other, shape[0])
    matrix = [[0.0] * length for _ in range(rows)]
    size = [[0.0] * length for _ in range(rows)]
    for r in range(rows):
        owner = r // group if groups > 1 and group else 0
        factor = 1.0 if scale is None else float(scale[r])
        for column in range(length):
            s, j = divmod(column, dim)
            terms = [
                table[t][owner][s if books > 1 else 0][index[t][r][s]][j] for t in range(stages)
            ]
            matrix[r][column] = factor * sum(terms)
            size[r][column] = abs(factor) * sum(map(abs, terms))
    weight, sizes = (torch.tensor(m, dtype=torch.float64) for m in (matrix, size))
    if axis == "out":
        weight, sizes = weight.T, sizes.T
    return weight.reshape(shape), sizes.reshape(shape)


SHAPES = st.one_of(
    st.tuples(st.integers(1, 9), st.integers(1, 13)),
    st.tuples(st.integers(1, 6), st.integers(1, 4), st.integers(1, 4)),
    st.tuples(st.integers(1, 6), st.integers(1, 3), st.integers(1, 3), st.integers(1, 3)),
    st.tuples(*[st.integers(1, 3)] * 5),
)


@settings(max_examples=150)
@given(
    shape=SHAPES,
    axis=st.sampled_from(["in", "out"]),
    dim=st.integers(1, 7),
    k=st.integers(1, 9),
    stages=st.integers(1, 3),
    group=st.none() | st.integers(1, 5),
    shared=st.booleans(),
    scaled=st.booleans(),
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 1000),
)
def test_decode_is_the_formula(
    shape: tuple[int, ...],
    axis: str,
    dim: int,
    k: int,
    stages: int,
    group: int | None,
    shared: bool,
    scaled: bool,
    dtype: torch.dtype,
    seed: int,
) -> None:
    rng = torch.Generator().manual_seed(seed)
    other = math.prod(shape[1:])
    rows, length = (shape[0], other) if axis == "in" else (other, shape[0])
    subspaces = -(-length // dim)
    groups = 1 if group is None else -(-rows // group)
    books = 1 if shared else subspaces
    codes = torch.randint(k, (stages, rows, subspaces), generator=rng).to(torch.uint8)
    codebooks = torch.randn(stages, groups, books, k, dim, generator=rng).to(dtype)
    scale = (torch.rand(rows, generator=rng) + 0.5).to(dtype) if scaled else None
    result = decode(codes, codebooks, scale, shape=shape, axis=axis, group=group)  # type: ignore[arg-type]
    expected, size = formula(codes, codebooks, scale, shape, axis, group)
    assert result.shape == shape
    assert result.dtype == dtype
    roundings = stages - 1 + scaled
    tolerance = roundings * torch.finfo(dtype).eps * size
    assert ((result.double() - expected).abs() <= tolerance).all()


@settings(max_examples=60)
@given(
    shape=SHAPES,
    scheme=st.sampled_from(
        [
            vq.KM(k=3),
            vq.KM(k=3, group=2),
            vq.KM(k=4, scale="row", codebook_dtype="bfloat16"),
            vq.PQ(k=3, dim=2),
            vq.PQ(k=3, dim=2, codebook_dtype="int8"),
            vq.PQ(k=3, dim=4, axis="out"),
            vq.PQ(k=4, dim=3, codebooks="tensor", scale="row"),
            vq.RQ(k=3, stages=3, dim=2, codebook_dtype="float32"),
            vq.RQ(k=2, axis="out"),
            vq.Binary(scale="row"),
        ]
    ),
    dtype=st.sampled_from(DTYPES),
)
def test_a_fitted_weight_decodes_by_the_formula_into_its_own_dtype(
    shape: tuple[int, ...], scheme: vq.Scheme, dtype: torch.dtype
) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).to(dtype)
    small = vq.quantize_weight(weight, scheme)
    result = small.decode()
    assert result.shape == small.shape == shape
    assert result.dtype == small.dtype == dtype
    assert small.codebooks.dtype == scheme.torch_codebook_dtype
    expected, size = formula(
        small.codes, small.codebooks, small.scale, shape, small.geometry.axis, small.geometry.group
    )
    # Centers become the weight's dtype, then stages add up, then the scale multiplies.
    tolerance = (small.codes.shape[0] + 2) * torch.finfo(dtype).eps * size + 1e-7
    assert ((result.double() - expected).abs() <= tolerance).all()


def test_decode_is_differentiable_in_codebooks_and_scale() -> None:
    codes = torch.randint(3, (2, 4, 3)).to(torch.uint8)
    codebooks = torch.randn(2, 2, 3, 3, 2, dtype=torch.float64, requires_grad=True)
    scale = torch.rand(4, dtype=torch.float64, requires_grad=True)

    def weight(codebooks: Tensor, scale: Tensor) -> Tensor:
        return decode(codes, codebooks, scale, shape=(4, 5), axis="in", group=2)

    assert torch.autograd.gradcheck(weight, (codebooks, scale))


@pytest.mark.parametrize(
    ("shape", "axis", "expected"),
    [
        ((6, 4), "in", (6, 4)),
        ((6, 4), "out", (4, 6)),
        ((6, 4, 3), "in", (6, 12)),
        ((6, 4, 3, 3), "out", (36, 6)),
        ((6, 1, 3, 3, 3), "in", (6, 27)),
    ],
)
def test_the_view_has_outputs_or_everything_else_as_rows(
    shape: tuple[int, ...], axis: str, expected: tuple[int, int]
) -> None:
    weight = torch.arange(float(math.prod(shape))).reshape(shape)
    geometry = vq.PQ(axis=axis).geometry(shape)  # type: ignore[arg-type]
    view = geometry.matrix(weight)
    assert (geometry.rows, geometry.length) == expected
    assert torch.equal(geometry.weight(view), weight)
    assert view.shape == expected
    rows = view if axis == "in" else view.T
    assert all(torch.equal(rows[i], weight[i].flatten()) for i in range(shape[0]))


@pytest.mark.parametrize(
    ("shape", "scheme", "nbytes"),
    [
        # codes + codebooks (+ scales), by hand
        ((64, 32), vq.PQ(k=16, dim=4), 64 * 8 * 4 // 8 + 8 * 16 * 4 * 2),
        ((64, 32), vq.PQ(k=16, dim=4, codebooks="tensor"), 64 * 8 * 4 // 8 + 16 * 4 * 2),
        ((64, 32), vq.PQ(k=16, dim=4, axis="out"), 32 * 16 * 4 // 8 + 16 * 16 * 4 * 2),
        ((64, 30), vq.PQ(k=8, dim=4), 64 * 8 * 3 // 8 + 8 * 8 * 4 * 2),
        ((64, 32), vq.KM(k=5), 64 * 32 * 3 // 8 + 5 * 2),
        ((5, 5), vq.KM(k=5), 10 + 5 * 2),
        ((64, 32), vq.KM(k=4, group=10, codebook_dtype="float32"), 512 + 7 * 4 * 4),
        ((64, 32), vq.KM(k=16, scale="row"), 1024 + 16 * 2 + 64 * 2),
        ((64, 32), vq.RQ(k=16, stages=2), 2 * 64 * 4 // 8 + 2 * 16 * 32 * 2),
        ((64, 32), vq.RQ(k=16, stages=3, dim=8), 3 * 64 * 4 * 4 // 8 + 3 * 4 * 16 * 8 * 2),
        ((64, 32), vq.Binary(), 256 + 4),
        ((64, 32), vq.Binary(scale="row", codebook_dtype="bfloat16"), 256 + 4 + 128),
        ((8, 4, 3, 3), vq.PQ(k=4, dim=9), 8 * 4 * 2 // 8 + 4 * 4 * 9 * 2),
        # int8: a byte for each number, and one more for each codebook
        ((64, 32), vq.PQ(k=16, dim=4, codebook_dtype="int8"), 256 + 8 * 16 * 4 + 8),
        ((64, 32), vq.KM(k=4, group=10, codebook_dtype="int8", scale="row"), 512 + 7 * 5 + 64 * 2),
        (
            (64, 32),
            vq.RQ(k=16, stages=3, dim=8, codebook_dtype="int8"),
            3 * 64 * 4 * 4 // 8 + 3 * 4 * (16 * 8 + 1),
        ),
    ],
)
def test_bytes_are_packed_codes_codebooks_and_scales(
    shape: tuple[int, ...], scheme: vq.Scheme, nbytes: int
) -> None:
    small = vq.quantize_weight(torch.randn(shape), scheme)
    assert small.nbytes == nbytes
    assert scheme.geometry(shape).nbytes == nbytes
    assert small.bits_per_weight == pytest.approx(8 * nbytes / math.prod(shape))


@settings(max_examples=80)
@given(
    shape=st.one_of(
        st.tuples(st.integers(1, 40), st.integers(1, 40)),
        st.tuples(st.integers(1, 12), st.integers(1, 6), st.integers(1, 3), st.integers(1, 3)),
    ),
    scheme=st.one_of(
        st.builds(vq.KM, k=st.integers(1, 20), group=st.none() | st.integers(1, 9)),
        st.builds(
            vq.PQ,
            k=st.integers(1, 20),
            dim=st.integers(1, 9),
            axis=st.sampled_from(["in", "out"]),
            codebooks=st.sampled_from(["subspace", "tensor"]),
            scale=st.sampled_from([None, "row"]),
        ),
        st.builds(
            vq.RQ,
            k=st.integers(1, 8),
            stages=st.integers(1, 3),
            dim=st.none() | st.integers(1, 9),
            axis=st.sampled_from(["in", "out"]),
            codebooks=st.sampled_from(["subspace", "tensor"]),
            codebook_dtype=st.sampled_from(["float16", "float32", "int8"]),
        ),
        st.builds(vq.Binary, scale=st.sampled_from([None, "row"])),
    ),
)
def test_the_size_is_known_before_the_fit(shape: tuple[int, ...], scheme: vq.Scheme) -> None:
    weight = torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape)))
    small = vq.quantize_weight(weight, scheme)
    assert small.nbytes <= scheme.geometry(shape).nbytes
    rows, length = scheme.geometry(shape).matrix(weight).shape
    if isinstance(scheme, vq.KM):
        points = min(rows, scheme.group or rows) * length
    elif isinstance(scheme, vq.Binary):
        points = 2
    else:
        assert isinstance(scheme, vq.PQ | vq.RQ)
        dim = min(scheme.dim or length, length)
        points = rows * (-(-length // dim) if scheme.codebooks == "tensor" else 1)
    assume(points >= scheme.k)  # random weights are all different
    if scheme.scale == "row" and length == 1:
        return  # every normalized weight is ±1
    assert small.k == scheme.k
    assert small.nbytes == scheme.geometry(shape).nbytes


@pytest.mark.parametrize(
    ("distinct", "dtype"),
    [
        (256, torch.uint8),
        (257, torch.int16),
        (1 << 15, torch.int16),
        ((1 << 15) + 1, torch.int32),
    ],
)
def test_codes_take_the_smallest_integer_that_holds_them(distinct: int, dtype: torch.dtype) -> None:
    weight = torch.arange(float(distinct)).unsqueeze(0)
    small = vq.quantize_weight(weight, vq.KM(k=1 << 16, codebook_dtype="float32"))
    assert small.k == distinct
    assert small.codes.dtype == dtype
    assert torch.equal(small.decode(), weight)


def test_code_bits_are_the_fewest_that_tell_k_centers_apart() -> None:
    for k in range(1, 2000):
        bits = code_bits(k)
        assert 2**bits >= k
        assert bits == 0 or 2 ** (bits - 1) < k
