"""``quantize_weight``: what a user passes in, and what importance and scales do."""

import dataclasses
import re
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import vq_plugin as vq
from tests.fit.peers import stage_by_stage
from vq_plugin.fit.lloyd import lloyd_step
from vq_plugin.fit.output.moments import Moments

EVERY = [
    vq.KM(k=8),
    vq.KM(k=4, group=3, scale="row"),
    vq.PQ(k=8, dim=4),
    vq.PQ(k=8, dim=3, axis="out", codebooks="tensor"),
    vq.RQ(k=8, stages=2, dim=8),
    vq.Binary(),
    vq.Binary(scale="row"),
]


def sse(weight: Tensor, small: vq.CodebookWeight, mass: Tensor | None = None) -> float:
    square = (small.decode().double() - weight.double()).square()
    return float((square if mass is None else square * mass).sum())


@pytest.mark.parametrize("scheme", EVERY, ids=str)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_the_weight_stays_and_its_dtype_comes_back(scheme: vq.Scheme, dtype: torch.dtype) -> None:
    weight = torch.randn(12, 16).to(dtype).requires_grad_()
    before = weight.detach().clone()
    small = vq.quantize_weight(weight, scheme)
    assert torch.equal(weight, before)
    assert weight.requires_grad
    assert small.scheme == scheme
    assert small.shape == (12, 16)
    assert small.decode().dtype == dtype
    assert not small.decode().requires_grad
    assert small.codebooks.dtype == torch.float16
    assert int(small.codes.max()) < small.k


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_memory_layout_does_not_matter(scheme: vq.Scheme) -> None:
    weight = torch.randn(16, 12)
    strided = torch.randn(32, 24)
    strided[::2, ::2] = weight
    plain = vq.quantize_weight(weight, scheme)
    for other in (weight.T.contiguous().T, strided[::2, ::2]):
        assert torch.equal(vq.quantize_weight(other, scheme).decode(), plain.decode())
    image = torch.randn(8, 4, 3, 3)
    last = image.to(memory_format=torch.channels_last)
    assert torch.equal(
        vq.quantize_weight(last, scheme).decode(), vq.quantize_weight(image, scheme).decode()
    )


def test_binary_is_the_sign_times_the_mean_size() -> None:
    weight = torch.randn(20, 30)
    decoded = vq.quantize_weight(weight, vq.Binary(codebook_dtype="float32")).decode()
    assert torch.allclose(decoded, weight.sign() * weight.abs().mean())
    rows = vq.quantize_weight(weight, vq.Binary(codebook_dtype="float32", scale="row")).decode()
    assert torch.allclose(rows, weight.sign() * weight.abs().mean(1, keepdim=True), rtol=1e-5)


def test_binary_takes_the_weighted_mean() -> None:
    weight, importance = torch.randn(20, 30), torch.rand(30)
    small = vq.quantize_weight(weight, vq.Binary(codebook_dtype="float32"), importance)
    mean = (weight.abs() * importance).sum() / importance.expand_as(weight).sum()
    assert torch.allclose(small.decode(), weight.sign() * mean, rtol=1e-5)


def test_row_scales_keep_rows_of_very_different_size() -> None:
    sizes = torch.logspace(-3, 2, 24)
    weight = torch.randn(24, 64) * sizes.unsqueeze(1)
    for scheme, plain in (
        (vq.KM(k=16, scale="row"), vq.KM(k=16)),
        (vq.PQ(k=16, dim=2, codebooks="tensor", scale="row"), vq.PQ(dim=2, codebooks="tensor")),
    ):
        with_scale = vq.quantize_weight(weight, scheme)
        assert with_scale.scale is not None
        assert with_scale.scale.shape == (24,)
        error = (with_scale.decode() - weight).square().mean(1).sqrt() / sizes
        without = (vq.quantize_weight(weight, plain).decode() - weight).square().mean(1).sqrt()
        assert error.max() < 1.0
        assert error.mean() < 0.5 * (without / sizes).mean()


def test_row_scales_run_along_the_other_side_than_the_axis() -> None:
    weight = torch.randn(6, 4, 3, 3)
    for axis, rows in (("in", 6), ("out", 36)):
        small = vq.quantize_weight(weight, vq.PQ(k=4, axis=axis, scale="row"))  # type: ignore[arg-type]
        assert small.scale is not None
        assert small.scale.shape == (rows,)


SCALED = [
    *[s for s in EVERY if s.scale == "row"],
    vq.PQ(k=8, dim=4, axis="out", scale="row"),
    vq.PQ(k=8, dim=4, codebooks="tensor", scale="row", codebook_dtype="bfloat16"),
    vq.RQ(k=8, stages=2, dim=8, scale="row", codebook_dtype="int8"),
    vq.KM(k=8, scale="row", codebook_dtype="float32"),
]


# The least of these is no float16, nor its square a float32; one of 1e-45 is subnormal itself.
@pytest.mark.parametrize("dead", [0.0, 1e-45, 1e-30, 1e-9])
@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("scheme", SCALED, ids=str)
def test_dead_rows_decode_to_next_to_nothing(
    scheme: vq.Scheme, calibrated: bool, dead: float
) -> None:
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 16, generator=generator) * 0.01
    rows = weight.T if getattr(scheme, "axis", "in") == "out" else weight
    rows[3] *= dead / 0.01
    moments = None
    if calibrated:
        x = torch.randn(64, 16, generator=generator)
        moments = Moments(x.square().mean(0), (x.T @ x / len(x)).unsqueeze(0))
    small = vq.quantize_weight(weight, scheme, moments=moments)
    decoded = small.decode() if rows is weight else small.decode().T
    assert decoded[3].abs().max() <= 10 * dead
    assert 0.3 < decoded.abs().mean() / weight.abs().mean() < 1.5
    assert lloyd_step(weight, small).decode().isfinite().all()


def test_a_dead_row_takes_no_centers_from_the_others() -> None:
    weight, scheme = torch.randn(12, 16), vq.KM(k=4, scale="row")
    others = vq.quantize_weight(weight[1:], scheme)
    weight[0] = 0
    assert torch.allclose(vq.quantize_weight(weight, scheme).codebooks, others.codebooks, atol=1e-3)


@pytest.mark.parametrize("scheme", SCALED, ids=str)
def test_a_layer_of_dead_rows_is_zero(scheme: vq.Scheme) -> None:
    assert (vq.quantize_weight(torch.zeros(4, 4), scheme).decode() == 0).all()
    if scheme.codebook_dtype != "float32":
        assert vq.quantize_weight(torch.full((4, 4), 1e-42), scheme).decode().abs().max() < 1e-41


def test_a_dead_row_comes_back_to_life_when_its_weights_move() -> None:
    weight = torch.randn(12, 16)
    weight[3] = 0
    small = vq.quantize_weight(weight, vq.KM(k=16, scale="row"))
    weight[3] = torch.randn(16)
    stepped = lloyd_step(weight, small)
    error = (stepped.decode()[3] - weight[3]).square().mean()
    assert error < 0.1 * weight[3].square().mean()


@pytest.mark.parametrize("size", [1e-30, 1e-20, 1e-10, 1e10, 1e17, 1e30])
def test_row_scales_or_an_error_that_helps_for_any_size(size: float) -> None:
    weight = torch.randn(8, 16) * size
    scheme = vq.KM(k=16, scale="row", codebook_dtype="float32")
    try:
        decoded = vq.quantize_weight(weight, scheme).decode()
    except ValueError as error:
        # A remedy that is already in place does not help.
        assert not re.search("scale='row'|'float32'", str(error).split(";")[-1])  # noqa: PT017
    else:
        assert ((decoded - weight).abs() < 0.5 * weight.abs().max()).all()


def test_groups_of_very_different_size_under_row_scales() -> None:
    weight = torch.randn(2, 16) * torch.tensor([[1e10], [1e-14]])
    scheme = vq.KM(k=8, group=1, scale="row", codebook_dtype="float32")
    decoded = vq.quantize_weight(weight, scheme).decode()
    assert ((decoded - weight).abs().amax(1) < 0.5 * weight.abs().amax(1)).all()


@pytest.mark.parametrize("group", [1, 3, 5, 12, 100])
def test_groups_are_fitted_on_their_own_rows(group: int) -> None:
    weight = torch.randn(12, 16)
    small = vq.quantize_weight(weight, vq.KM(k=4, group=group))
    assert small.codebooks.shape == (1, -(-12 // group), 1, 4, 1)
    alone = [vq.quantize_weight(rows, vq.KM(k=4)).decode() for rows in weight.split(group)]
    assert torch.equal(small.decode(), torch.cat(alone))


def test_a_length_that_dim_does_not_divide_costs_no_accuracy() -> None:
    weight = torch.randn(64, 18)
    whole = sse(weight[:, :16], vq.quantize_weight(weight[:, :16], vq.PQ(k=16, dim=4)))
    padded = vq.quantize_weight(weight, vq.PQ(k=16, dim=4))
    assert padded.codes.shape == (1, 64, 5)
    left = (padded.decode() - weight)[:, :16].square().sum()
    assert float(left) == pytest.approx(whole, rel=0.05)


def test_padding_does_not_pull_shared_centers_to_zero() -> None:
    # Values far from 0, and three quarters of the last sub-vector are padding.
    weight = torch.randn(64, 5) * 0.1 + 8
    small = vq.quantize_weight(weight, vq.PQ(k=8, dim=4, codebooks="tensor"))
    assert (small.decode() - weight).abs().max() < 0.5


def test_dim_beyond_the_length_is_the_length() -> None:
    weight = torch.randn(32, 6)
    long, exact = (vq.quantize_weight(weight, vq.PQ(k=8, dim=d)) for d in (100, 6))
    assert long.codebooks.shape == (1, 1, 1, 8, 6)
    assert torch.equal(long.decode(), exact.decode())


@pytest.mark.parametrize("scheme", EVERY, ids=str)
def test_only_ratios_of_importance_matter(scheme: vq.Scheme) -> None:
    weight, importance = torch.randn(48, 32), torch.rand(32) + 0.01
    one = vq.quantize_weight(weight, scheme, importance)
    for factor in (2.0**-40, 2.0**40):
        other = vq.quantize_weight(weight, scheme, importance * factor)
        assert torch.equal(one.codes, other.codes)
        assert torch.equal(one.codebooks, other.codebooks)


@pytest.mark.parametrize(
    "scheme", [vq.KM(k=8), vq.PQ(k=16, dim=4), vq.RQ(k=16, dim=8), vq.RQ(k=16)], ids=str
)
def test_nearly_equal_importance_costs_nearly_nothing(scheme: vq.Scheme) -> None:
    weight = torch.randn(64, 32)
    plain = sse(weight, vq.quantize_weight(weight, scheme))
    for importance in (torch.ones(1), 1 + 1e-3 * torch.rand(32)):
        error = sse(weight, vq.quantize_weight(weight, scheme, importance))
        assert error <= plain * 1.03


@pytest.mark.parametrize(
    "scheme",
    [vq.KM(k=8), vq.PQ(k=16, dim=4), vq.PQ(k=16, dim=4, codebooks="tensor"), vq.RQ(k=16, dim=8)],
    ids=str,
)
def test_what_does_not_count_does_not_hurt_the_rest(scheme: vq.Scheme) -> None:
    weight = torch.randn(128, 32)
    counts = torch.ones(128, 1)
    counts[1::2] = 0
    hostile = weight.clone()
    hostile[1::2] = hostile[1::2] * 3 + 5
    small = vq.quantize_weight(hostile, scheme, counts)
    alone = vq.quantize_weight(weight[::2], scheme, torch.ones(1))
    assert sse(hostile, small, counts) <= 1.03 * sse(weight[::2], alone)


@pytest.mark.parametrize("scheme", [vq.PQ(k=16, dim=4), vq.PQ(k=16, dim=4, axis="out")], ids=str)
def test_inputs_that_do_not_count_do_not_hurt_their_neighbours(scheme: vq.Scheme) -> None:
    # A sub-vector along "in" mixes inputs that count with one that does not.
    weight, counts = torch.randn(128, 32), torch.ones(32)
    counts[::4] = 0
    weight[:, ::4] *= 5
    plain = vq.quantize_weight(weight, scheme)
    small = vq.quantize_weight(weight, scheme, counts)
    assert sse(weight, small, counts) < 0.9 * sse(weight, plain, counts)


@pytest.mark.parametrize("shape", [(), (1,), (16,), (12, 1), (12, 16)])
def test_importance_broadcasts(shape: tuple[int, ...]) -> None:
    weight = torch.randn(12, 16)
    importance = torch.rand(shape) + 0.1
    small = vq.quantize_weight(weight, vq.PQ(k=4), importance)
    full = vq.quantize_weight(weight, vq.PQ(k=4), importance.expand(12, 16).clone())
    assert torch.equal(small.decode(), full.decode())


@pytest.mark.parametrize(
    ("importance", "message"),
    [
        (torch.ones(15), r"shape \(15,\) does not broadcast to the weight's \(12, 16\)"),
        (torch.ones(3, 12, 16), "does not broadcast"),
        (-torch.ones(16), "not negative"),
        (torch.full((16,), torch.nan), "finite"),
        (torch.full((16,), torch.inf), "finite"),
        (torch.zeros(16), "above 0"),
    ],
)
def test_importance_that_makes_no_sense_is_refused(importance: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vq.quantize_weight(torch.randn(12, 16), vq.KM(), importance)


@pytest.mark.parametrize("scheme", EVERY, ids=str)
@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
def test_bad_values_are_counted_and_located(scheme: vq.Scheme, value: float) -> None:
    weight = torch.randn(12, 16)
    weight[3, 5] = weight[7, 1] = value
    with pytest.raises(ValueError, match=rf"2 NaN or infinite values.*\(3, 5\): {value}"):
        vq.quantize_weight(weight, scheme)


@pytest.mark.parametrize(
    ("weight", "message"),
    [
        (torch.ones(4), "2 dimensions or more"),
        (torch.zeros(0, 4), "empty"),
        (torch.zeros(4, 0), "empty"),
        (torch.ones(4, 4, dtype=torch.int32), "float dtype, got torch.int32"),
        (torch.ones(4, 4, device="meta"), "meta device"),
    ],
)
def test_what_is_no_weight_is_refused(weight: Tensor, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        vq.quantize_weight(weight, vq.KM())


@pytest.mark.parametrize("scheme", EVERY[:1] + EVERY[2:6], ids=str)
def test_centers_that_half_precision_cannot_hold_are_an_error(scheme: vq.Scheme) -> None:
    for size in (1e6, 1e-9):
        with pytest.raises(ValueError, match="codebook_dtype='float32'"):
            vq.quantize_weight(torch.randn(12, 16) * size, scheme)


INT8 = [
    vq.PQ(k=16, dim=4, codebook_dtype="int8"),
    vq.PQ(k=8, dim=3, axis="out", codebook_dtype="int8"),
    vq.PQ(k=64, dim=8, codebooks="tensor", codebook_dtype="int8"),
    vq.KM(k=8, group=20, codebook_dtype="int8"),
]


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_int8_centers_are_the_exact_ones_rounded_and_codes_the_nearest_of_them(
    scheme: vq.Scheme,
) -> None:
    weight = torch.randn(60, 48)
    small = vq.quantize_weight(weight, scheme)
    exact = vq.quantize_weight(weight, replace(scheme, codebook_dtype="float32"))
    centers = exact.codebooks.double().numpy()
    largest = np.abs(centers).max((3, 4), keepdims=True)
    step = 2 ** np.ceil(np.log2(largest / 127.5))
    expected = torch.from_numpy(np.rint(centers / step) * step)
    assert torch.equal(small.codebooks.double(), expected)
    # No code of another center would be nearer.
    rows = weight if scheme.geometry((1, 1)).axis == "in" else weight.T
    dim = expected.shape[4]
    points = torch.nn.functional.pad(rows, (0, -rows.shape[1] % dim)).unflatten(1, (-1, dim))
    owner = torch.arange(len(rows)) // (small.geometry.group or len(rows))
    books = expected[0][owner].expand(-1, points.shape[1], -1, -1)
    distances = (points.double().unsqueeze(2) - books).square().sum(3)
    found = distances.gather(2, small.codes[0].long().unsqueeze(2)).squeeze(2)
    torch.testing.assert_close(found, distances.amin(2), rtol=1e-5, atol=1e-7)
    assert sse(weight, small) <= 1.005 * sse(weight, exact)


@pytest.mark.parametrize("k", [1, 4])
def test_int8_centers_of_zeros_are_zeros(k: int) -> None:
    scheme = vq.KM(k=k, keep_zeros=True, codebook_dtype="int8")
    small = vq.quantize_weight(torch.zeros(4, 4), scheme)
    assert small.k == 1
    assert small.nbytes == 2
    assert not small.decode().any()


@pytest.mark.parametrize("scheme", INT8, ids=str)
def test_int8_centers_are_too_large_where_float16_is(scheme: vq.Scheme) -> None:
    for size in (1e6, 1e-9):
        with pytest.raises(ValueError, match=r"codebook_dtype='int8'.* use .*'float32'"):
            vq.quantize_weight(torch.randn(12, 16) * size, scheme)


def test_a_float64_weight_beyond_float32_is_an_error() -> None:
    with pytest.raises(ValueError, match="outside"):
        vq.quantize_weight(torch.ones(4, 4, dtype=torch.float64) * 1e300, vq.KM())


@given(
    st.tuples(st.integers(1, 6), st.integers(1, 9)),
    st.sampled_from([vq.KM(), vq.PQ(), vq.PQ(axis="out"), vq.RQ(k=4, dim=2), vq.Binary()]),
)
def test_constant_weights_decode_to_themselves(shape: tuple[int, int], scheme: vq.Scheme) -> None:
    for value in (0.0, 0.75, -2.5):
        weight = torch.full(shape, value)
        assert torch.equal(vq.quantize_weight(weight, scheme).decode(), weight)


def test_what_is_no_scheme_is_refused() -> None:
    with pytest.raises(TypeError, match=r"expected a scheme such as .*, got 'pq'"):
        vq.quantize_weight(torch.randn(4, 4), "pq")  # type: ignore[arg-type]


@pytest.mark.parametrize("scheme", [vq.KM(k=8), vq.PQ(k=8, dim=4), vq.RQ(k=8, dim=4)], ids=str)
def test_the_error_is_about_that_of_scikit_learn(scheme: vq.Scheme) -> None:
    weight = torch.randn(64, 32)
    stages = scheme.stages if isinstance(scheme, vq.RQ) else 1
    if isinstance(scheme, vq.KM):
        decoded = stage_by_stage(weight.reshape(-1, 1), 8, 1, 1).reshape(64, 32)
    else:
        decoded = stage_by_stage(weight, 8, stages, 4)
    theirs = float((decoded - weight.double()).square().sum())
    assert sse(weight, vq.quantize_weight(weight, scheme)) <= 1.01 * theirs


def _of(fit: Any, name: str) -> vq.Scheme:
    """A scheme of a user's own, with two centers of single numbers."""
    cls = dataclasses.make_dataclass(
        name.title(),
        [],
        bases=(vq.Scheme,),
        frozen=True,
        repr=False,
        namespace={"method": name, "k": 2},
    )
    return vq.register_scheme(fit=fit)(cls)()


def _halves(matrix: Tensor, *_: object) -> tuple[Tensor, Tensor]:
    codes = (matrix > 0).to(torch.uint8)
    return codes.unsqueeze(0), torch.tensor([-0.5, 0.5]).reshape(1, 1, 1, 2, 1)


def test_a_users_fit_may_write_in_place() -> None:
    def fit(
        matrix: Tensor, scheme: vq.Scheme, importance: Tensor | None, seed: int
    ) -> tuple[Tensor, Tensor]:
        codes, books = _halves(matrix)
        matrix.zero_()
        assert importance is not None
        importance.zero_()
        return codes, books

    weight, importance = torch.randn(6, 5), torch.rand(6, 5) + 0.1
    before = weight.clone(), importance.clone()
    small = vq.quantize_weight(weight, _of(fit, "in_place"), importance)
    assert torch.equal(weight, before[0])
    assert torch.equal(importance, before[1])
    assert torch.equal(small.decode(), before[0].sign() / 2)
    model = nn.Sequential(nn.Linear(5, 6))
    kept = model[0].weight.detach().clone()
    vq.compress(model, _of(lambda m, *_: (_halves(m), m.zero_())[0], "in_place_too"))
    assert torch.equal(model[0].weight, kept)


@pytest.mark.parametrize(
    ("name", "given", "error", "message"),
    [
        ("gives_none", lambda m: None, TypeError, "gives two tensors, .*; got NoneType"),
        ("gives_one", lambda m: _halves(m)[:1], TypeError, "gives two tensors, .*; got tuple"),
        (
            "gives_arrays",
            lambda m: tuple(each.numpy() for each in _halves(m)),
            TypeError,
            "gives two tensors, .*; got ndarray, ndarray",
        ),
        ("swaps", lambda m: _halves(m)[::-1], ValueError, r"\(1, 6, 5\) and \(1, 1, 1, k, 1\)"),
        (
            "flat_books",
            lambda m: (_halves(m)[0], torch.ones(2)),
            ValueError,
            r"gave codes of shape \(1, 6, 5\) and codebooks of shape \(2,\); of this weight",
        ),
        (
            "few_codes",
            lambda m: (_halves(m)[0][:, :3], _halves(m)[1]),
            ValueError,
            r"gave codes of shape \(1, 3, 5\)",
        ),
    ],
)
def test_a_users_fit_of_other_shapes_says_which(
    name: str, given: Any, error: type[Exception], message: str
) -> None:
    scheme = _of(lambda m, *_: given(m), name)
    with pytest.raises(error, match=f"the fit of {name}.*{message}"):
        vq.quantize_weight(torch.randn(6, 5), scheme)
