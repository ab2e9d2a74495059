"""K-means on sub-vectors against scikit-learn, and at the edges."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import vq_plugin as vq
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.vector import fit_vector


def sse(x: Tensor, centers: Tensor, mass: Tensor | None = None) -> float:
    """Weighted squared error to the nearest centers, one book after the other, in float64."""
    total = 0.0
    for book in range(len(x)):
        points, c = x[book].double(), centers[book].double()
        weight = torch.ones_like(points) if mass is None else mass[book].double()
        square = (points.unsqueeze(1) - c).square()
        total += float((square * weight.unsqueeze(1)).sum(2).min(1).values.sum())
    return total


def peer_sse(x: Tensor, k: int, mass: Tensor | None = None, seed: int = 0) -> float:
    """The same for scikit-learn, fitted in float64 and one book after the other."""
    from sklearn.cluster import KMeans

    centers = []
    for book in range(len(x)):
        weight = None if mass is None else mass[book, :, 0].numpy()
        points = x[book].double().numpy()
        model = KMeans(k, n_init=1, random_state=seed).fit(points, sample_weight=weight)
        centers.append(torch.from_numpy(model.cluster_centers_))
    return sse(x, torch.stack(centers), mass)


def points(kind: str, books: int, n: int, dim: int, seed: int = 0) -> Tensor:
    rng = np.random.default_rng(seed)
    x = rng.normal(0, 0.05, (books, n, dim))
    match kind:
        case "clustered":
            middle = rng.normal(0, 1, (books, 1, 12, dim))
            which = rng.integers(0, 12, (books, n))
            x += np.take_along_axis(middle[:, 0], which[..., None], 1)
        case "heavy-tailed":
            x = rng.standard_t(3, (books, n, dim)) * 0.05
        case "outlier":
            x[:, 0] = 500  # 1e4 times the rest
        case "two tight clusters":
            x = np.where(rng.random((books, n, 1)) < 0.5, -1, 1) + 0.2 * x
        case "correlated":
            x = np.cumsum(x, axis=2)
    return torch.from_numpy(x.astype(np.float32))


KINDS = [
    "normal",
    "clustered",
    "heavy-tailed",
    "outlier",
    "two tight clusters",
    "correlated",
]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("books", "n", "dim", "k"),
    [(16, 256, 4, 16), (8, 300, 2, 64), (1, 3000, 8, 16), (48, 64, 4, 8)],
)
def test_the_error_is_not_above_that_of_scikit_learn(
    kind: str, books: int, n: int, dim: int, k: int
) -> None:
    x = points(kind, books, n, dim)
    # One fit of one book is luck on both sides; only totals tell.
    seeds = range(3 if books == 1 else 1)
    ours = sum(sse(x, fit_vector(Batch(x, None), k, seed)[0]) for seed in seeds)
    assert ours <= sum(peer_sse(x, k, seed=seed) for seed in seeds) * 1.01


# Seeds are drawn from a sample, which has few points of the tails.
@pytest.mark.parametrize(
    ("kind", "most"), [("normal", 1.005), ("correlated", 1.005), ("heavy-tailed", 1.03)]
)
def test_samples_of_many_points_find_centers_as_good_as_all_points_do(
    kind: str, most: float
) -> None:
    # More points than the first sample of the fit (65,536), and than the next one.
    x = points(kind, 1, 300_000, 4)
    centers, codes = fit_vector(Batch(x, None), 32, 0)
    error = sse(x, centers)
    assert error <= peer_sse(x, 32) * most
    assert error == pytest.approx(float((x - centers[:, codes[0].long()]).square().sum()), rel=1e-3)


def test_rare_points_that_a_sample_misses_keep_their_centers() -> None:
    x = torch.zeros(1, 100_000, 2)
    x[0, 7], x[0, 54_321] = 1.0, 2.0
    centers, codes = fit_vector(Batch(x, None), 3, 0)
    assert centers.shape == (1, 3, 2)
    assert torch.equal(centers[0, codes[0].long()], x[0])


def test_point_weights_count_as_in_scikit_learn() -> None:
    x = points("normal", 64, 256, 4)
    rng = torch.Generator().manual_seed(1)
    mass = (torch.rand(64, 256, 1, generator=rng).pow(6) + 1e-4).expand(-1, -1, 4).contiguous()
    centers, _ = fit_vector(Batch(x, mass), 16, 0)
    assert sse(x, centers, mass) <= peer_sse(x, 16, mass) * 1.01


@pytest.mark.parametrize("seed", range(3))
def test_importance_of_single_elements_lowers_the_weighted_error(seed: int) -> None:
    x = points("normal", 8, 256, 4, seed)
    mass = torch.rand(x.shape, generator=torch.Generator().manual_seed(seed)).pow(6) + 1e-4
    weighted, _ = fit_vector(Batch(x, mass), 16, 0)
    plain, _ = fit_vector(Batch(x, None), 16, 0)
    assert sse(x, weighted, mass) < 0.9 * sse(x, plain, mass)


def test_equal_importance_is_no_importance() -> None:
    x = points("normal", 16, 256, 4)
    weighted, _ = fit_vector(Batch(x, torch.full_like(x, 0.25)), 16, 0)
    plain, _ = fit_vector(Batch(x, None), 16, 0)
    assert sse(x, weighted) == pytest.approx(sse(x, plain), rel=0.03)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_no_center_is_empty(kind: str, weighted: bool) -> None:
    x = points(kind, 5, 400, 3)
    mass = torch.rand(x.shape) + 0.1 if weighted else None
    centers, codes = fit_vector(Batch(x, mass), 32, 0)
    assert centers.shape == (5, 32, 3)
    assert codes.shape == (5, 400)
    for book in codes:
        assert len(book.unique()) == 32


@pytest.mark.parametrize("value", [0.0, 2.5, -1e-6])
@pytest.mark.parametrize("books", [1, 4])
def test_constants_are_one_center(value: float, books: int) -> None:
    x = torch.full((books, 50, 4), value)
    centers, codes = fit_vector(Batch(x, None), 8, 0)
    assert centers.shape == (books, 1, 4)
    assert torch.allclose(centers, x[:, :1], rtol=1e-6, atol=0)
    assert (codes == 0).all()


@given(
    books=st.integers(1, 4),
    n=st.integers(1, 30),
    dim=st.integers(1, 5),
    distinct=st.integers(1, 10),
    k=st.integers(10, 40),
    weighted=st.booleans(),
    seed=st.integers(0, 100),
)
def test_fewer_distinct_points_than_k_are_reproduced(
    books: int, n: int, dim: int, distinct: int, k: int, weighted: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    palette = torch.randint(-20, 21, (books, distinct, dim), generator=rng) / 8
    which = torch.randint(distinct, (books, n, 1), generator=rng).expand(-1, -1, dim)
    x = palette.gather(1, which)
    mass = torch.rand(x.shape, generator=rng) + 0.01 if weighted else None
    centers, codes = fit_vector(Batch(x, mass), k, seed)
    most = max(len(book.unique(dim=0)) for book in x)
    assert centers.shape == (books, most, dim)
    decoded = centers.gather(1, codes.long().unsqueeze(2).expand(-1, -1, dim))
    assert torch.allclose(decoded, x, atol=1e-5)


@pytest.mark.parametrize("scheme", [vq.PQ(k=64), vq.PQ(k=64, axis="out"), vq.RQ(k=64)])
def test_repeated_rows_and_columns_are_reproduced_to_the_codebooks_precision(
    scheme: vq.Scheme,
) -> None:
    weight = torch.randn(7, 6).repeat(5, 4)
    decoded = vq.quantize_weight(weight, scheme).decode()
    assert torch.allclose(decoded, weight, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("books", [1, 16])
def test_an_offset_of_a_thousand_spreads_changes_nothing(books: int) -> None:
    x = points("normal", books, 400, 4)
    shifted = x + 50.0
    error = sse(shifted, fit_vector(Batch(shifted, None), 16, 0)[0])
    assert error <= sse(x, fit_vector(Batch(x, None), 16, 0)[0]) * 1.05


@pytest.mark.parametrize("factor", [1e-12, 1e12])
def test_units_do_not_matter(factor: float) -> None:
    x = points("normal", 8, 256, 4)
    plain = sse(x, fit_vector(Batch(x, None), 16, 0)[0])
    scaled = sse(x * factor, fit_vector(Batch(x * factor, None), 16, 0)[0])
    assert scaled / factor**2 == pytest.approx(plain, rel=0.03)


def test_a_sample_finds_about_the_same_centers_as_all_points() -> None:
    # 65,536 points are the sample; twice as many are polished.
    x = points("clustered", 1, 1 << 17, 2)
    all_at_once = sse(x[:, ::2], fit_vector(Batch(x[:, ::2].contiguous(), None), 12, 0)[0])
    sampled = sse(x, fit_vector(Batch(x, None), 12, 0)[0])
    assert sampled <= 2 * all_at_once * 1.03


@given(
    books=st.integers(1, 3),
    n=st.integers(1, 40),
    k=st.integers(1, 12),
    dim=st.integers(1, 6),
    weighted=st.booleans(),
    seed=st.integers(0, 100),
)
def test_every_point_goes_to_a_nearest_center(
    books: int, n: int, k: int, dim: int, weighted: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(books, n, dim, generator=rng)
    centers = torch.randn(books, k, dim, generator=rng)
    mass = torch.rand(x.shape, generator=rng) + 0.01 if weighted else None
    codes = best_kernels().assign(Batch(x, mass), centers)
    square = (x.unsqueeze(2) - centers.unsqueeze(1)).double().square()
    if mass is not None:
        square *= mass.unsqueeze(2)
    distance = square.sum(3)
    chosen = distance.gather(2, codes.long().unsqueeze(2)).squeeze(2)
    assert (chosen <= distance.min(2).values + 1e-5).all()
