"""1-D k-means against kmeans1d's optimum, scikit-learn, and itself on repeated points."""

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vq_plugin as vq
from vq_plugin.fit import line, scalar
from vq_plugin.fit.scalar import assign_scalar, fit_scalar


def sse(values: Tensor, centers: Tensor, mass: Tensor | None = None) -> float:
    """Weighted squared error to the nearest center, in float64."""
    c, x = centers.double().sort().values, values.double()
    right = torch.searchsorted(c, x).clamp_(max=len(c) - 1)
    left = (right - 1).clamp_(min=0)
    error = torch.minimum((x - c[left]).square(), (x - c[right]).square())
    return float((error if mass is None else error * mass.double()).sum())


def values(kind: str, n: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.02, n)
    match kind:
        case "heavy-tailed":
            x = rng.standard_t(2.5, n) * 0.02
            x[n // 2] = 1e4 * np.median(np.abs(x))
        case "bimodal":
            x = np.where(rng.random(n) < 0.3, -1, 1) + rng.normal(0, 0.01, n)
        case "duplicates":
            x = np.round(rng.normal(0, 1, n), 1)
        case "uniform":
            x = rng.uniform(-1, 1, n)
        case "pruned":
            x[np.abs(x) < np.quantile(np.abs(x), 0.9)] = 0
    return torch.from_numpy(x.astype(np.float32))


KINDS = ["normal", "heavy-tailed", "bimodal", "duplicates", "uniform", "pruned"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 2, 3, 8, 37, 256])
def test_small_weights_get_the_optimum(kind: str, k: int) -> None:
    kmeans1d = pytest.importorskip("kmeans1d")
    x = values(kind, 1500)
    centers = fit_scalar(x, k)
    best = torch.tensor(kmeans1d.cluster(x.tolist(), min(k, len(x.unique()))).centroids)
    assert sse(x, centers) <= sse(x, best) * (1 + 1e-6) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 16, 64, 256])
def test_larger_weights_stay_close_to_the_optimum(kind: str, k: int) -> None:
    kmeans1d = pytest.importorskip("kmeans1d")
    x = values(kind, 15_000)
    centers = fit_scalar(x, k)
    best = torch.tensor(kmeans1d.cluster(x.tolist(), min(k, len(x.unique()))).centroids)
    assert sse(x, centers) <= sse(x, best) * 1.01 + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 4, 16, 100, 256])
def test_the_error_is_not_above_that_of_scikit_learn(kind: str, k: int) -> None:
    from sklearn.cluster import KMeans

    x = values(kind, 8000, seed=1)
    peer = KMeans(min(k, len(x.unique())), n_init=1, random_state=0)
    peer.fit(x.double().numpy()[:, None])
    theirs = sse(x, torch.from_numpy(peer.cluster_centers_.ravel()))
    assert sse(x, fit_scalar(x, k)) <= theirs * (1 + 1e-4) + 1e-12


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [1, 5, 256, 1000])
def test_centers_ascend_within_the_range_and_all_are_used(kind: str, k: int) -> None:
    x = values(kind, 6000)
    centers = fit_scalar(x, k)
    assert len(centers) == min(k, len(x.unique()))
    assert (centers.diff() > 0).all()
    assert x.min() <= centers[0]
    assert centers[-1] <= x.max()
    assert len(assign_scalar(x, centers).unique()) == len(centers)


@given(
    st.lists(st.tuples(st.integers(-8, 8), st.integers(1, 5)), min_size=1, max_size=30),
    st.integers(1, 9),
)
def test_importance_is_the_same_as_repeating_a_weight(
    points: list[tuple[int, int]], k: int
) -> None:
    x = torch.tensor([float(p[0]) for p in points])
    times = torch.tensor([p[1] for p in points])
    weighted = fit_scalar(x, k, importance=times.float())
    repeated = x.repeat_interleave(times)
    assert sse(repeated, weighted) == pytest.approx(sse(repeated, fit_scalar(repeated, k)))


@pytest.mark.parametrize("n", [2000, 20_000])
def test_importance_lowers_the_weighted_error(n: int) -> None:
    x = values("normal", n)
    mass = torch.rand(n, generator=torch.Generator().manual_seed(1)).pow(8) + 1e-6
    weighted, plain = fit_scalar(x, 16, importance=mass), fit_scalar(x, 16)
    assert sse(x, weighted, mass) < sse(x, plain, mass)
    assert sse(x, plain) < sse(x, weighted)


@pytest.mark.parametrize("value", [0.0, -3.5, 1e-8])
def test_a_constant_is_one_center(value: float) -> None:
    assert fit_scalar(torch.full((100,), value), 16).tolist() == [pytest.approx(value)]


@given(st.sets(st.integers(-1000, 1000), min_size=1, max_size=40), st.integers(0, 20))
def test_k_above_the_distinct_values_is_reduced_to_them(distinct: set[int], more: int) -> None:
    x = torch.tensor([v / 8 for v in distinct] * 3)
    small = vq.quantize_weight(x.unsqueeze(0), vq.KM(k=len(distinct) + more))
    assert small.k == len(distinct)
    assert torch.equal(small.decode(), x.unsqueeze(0))


@pytest.mark.parametrize("k", [1, 2, 5, 16, 256])
@pytest.mark.parametrize("codebook_dtype", ["float16", "bfloat16", "float32", "int8"])
def test_kept_zeros_are_exactly_zero(k: int, codebook_dtype: str) -> None:
    weight = values("pruned", 6000).reshape(60, 100)
    scheme = vq.KM(k=k, keep_zeros=True, codebook_dtype=codebook_dtype)  # type: ignore[arg-type]
    decoded = vq.quantize_weight(weight, scheme).decode()
    assert (decoded[weight == 0] == 0).all()


@pytest.mark.parametrize("group", [None, 7])
@pytest.mark.parametrize("scale", [None, "row"])
def test_zeros_stay_in_every_group_and_under_a_row_scale(
    group: int | None, scale: str | None
) -> None:
    weight = values("pruned", 6000).reshape(60, 100) + 0.0
    scheme = vq.KM(k=4, keep_zeros=True, group=group, scale=scale)  # type: ignore[arg-type]
    decoded = vq.quantize_weight(weight, scheme).decode()
    assert (decoded[weight == 0] == 0).all()
    assert (decoded[weight != 0] != 0).float().mean() > 0.5


def test_keeping_zeros_costs_little_and_nothing_where_there_are_none() -> None:
    pruned, full = values("pruned", 9000), values("normal", 9000)
    kept = fit_scalar(pruned, 8, keep_zeros=True)
    assert 0.0 in kept.tolist()
    assert len(kept) == 8
    # 90 % zeros: the optimum has a center next to 0 anyway.
    assert sse(pruned, kept) <= sse(pruned, fit_scalar(pruned, 8)) * 1.01
    assert torch.equal(fit_scalar(full, 8, keep_zeros=True), fit_scalar(full, 8))


@pytest.fixture
def gather_in_cells(monkeypatch: pytest.MonkeyPatch) -> Callable[[], None]:
    """Turns on what happens above 4 M weights, at a size that tests can afford.

    As there, about one weight in five is sampled to place the cells.
    """

    def turn_on() -> None:
        monkeypatch.setattr(line, "SORT_LIMIT", 50_000)
        monkeypatch.setattr(scalar, "_BLOCK", 50_000)

    return turn_on


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("k", [2, 7, 16, 64])
@pytest.mark.parametrize("keep_zeros", [False, True])
def test_gathering_in_cells_costs_less_than_a_thousandth(
    kind: str, k: int, keep_zeros: bool, gather_in_cells: Callable[[], None]
) -> None:
    x = values(kind, 250_000)
    direct = fit_scalar(x, k, keep_zeros=keep_zeros)
    gather_in_cells()
    gathered = fit_scalar(x, k, keep_zeros=keep_zeros)
    assert len(gathered) == len(direct)
    assert sse(x, gathered) <= sse(x, direct) * 1.001 + 1e-9
    if keep_zeros and (x == 0).any():
        assert 0.0 in gathered.tolist()


def test_cells_honour_importance(gather_in_cells: Callable[[], None]) -> None:
    x = values("normal", 250_000)
    mass = torch.rand(len(x), generator=torch.Generator().manual_seed(1)).pow(6) + 1e-6
    direct = fit_scalar(x, 16, importance=mass)
    gather_in_cells()
    gathered = fit_scalar(x, 16, importance=mass)
    assert sse(x, gathered, mass) <= sse(x, direct, mass) * 1.001


@pytest.mark.parametrize("levels", [3, 100])
def test_a_large_weight_of_few_values_is_reproduced(
    levels: int, gather_in_cells: Callable[[], None]
) -> None:
    # As an already quantized weight: the outer levels are rare.
    x = (values("normal", 250_000) * levels * 5).round()
    distinct = x.unique()
    assert 3 <= len(distinct) <= 128
    gather_in_cells()
    assert torch.equal(fit_scalar(x, 128), distinct.double())


@given(
    st.lists(st.floats(-4, 4, width=32), min_size=1, max_size=50),
    st.lists(st.floats(-4, 4, width=16), min_size=1, max_size=9, unique=True),
)
def test_every_value_goes_to_a_nearest_center(x: list[float], centers: list[float]) -> None:
    ascending = torch.tensor(sorted(centers))
    points = torch.tensor(x)
    codes = assign_scalar(points, ascending)
    distance = (points.double().unsqueeze(1) - ascending.double()).abs()
    chosen = distance.gather(1, codes.long().unsqueeze(1)).squeeze(1)
    assert (chosen <= distance.min(1).values + 1e-6).all()
