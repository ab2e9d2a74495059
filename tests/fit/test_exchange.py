"""Hartigan's exchange never costs, and moves points that Lloyd cannot."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.exchange import improve


def error(x: Tensor, codes: Tensor, centers: Tensor, mass: Tensor | None = None) -> float:
    index = codes.long().unsqueeze(2).expand(-1, -1, x.shape[2])
    square = (x - centers.gather(1, index)).double().square()
    return float((square if mass is None else square * mass).sum())


def means(x: Tensor, codes: Tensor, k: int) -> Tensor:
    """Mean of every code's points, in plain loops; 0 where there are none."""
    result = torch.zeros(len(x), k, x.shape[2])
    for book in range(len(x)):
        for code in range(k):
            mine = x[book][codes[book] == code]
            if len(mine):
                result[book, code] = mine.double().mean(0).float()
    return result


@given(
    books=st.integers(1, 3),
    n=st.integers(1, 60),
    k=st.integers(1, 8),
    dim=st.integers(1, 4),
    weighted=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_the_error_never_rises(
    books: int, n: int, k: int, dim: int, weighted: bool, seed: int
) -> None:
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn(books, n, dim, generator=rng)
    codes = torch.randint(k, (books, n), generator=rng).int()
    centers = means(x, codes, k)
    mass = torch.rand(x.shape, generator=rng) + 0.1 if weighted else None
    new_codes, new_centers = improve(Batch(x, mass), codes, centers)
    assert new_codes.shape == codes.shape
    assert new_centers.shape == centers.shape
    assert int(new_codes.min()) >= 0
    assert int(new_codes.max()) < k
    before, after = error(x, codes, centers, mass), error(x, new_codes, new_centers, mass)
    assert after <= before * (1 + 1e-5) + 1e-9
    if not weighted:
        used = torch.stack([torch.bincount(book, minlength=k) > 0 for book in new_codes.long()])
        assert torch.allclose(new_centers[used], means(x, new_codes, k)[used], atol=1e-5)


def test_a_point_moves_that_lloyd_leaves() -> None:
    # 2 is nearer to the mean of {0, 2} than to 3.1, yet {0} and {2, 3.1} cost a third.
    x = torch.tensor([[[0.0], [2.0], [3.1]]])
    codes = torch.tensor([[0, 0, 1]], dtype=torch.int32)
    centers = torch.tensor([[[1.0], [3.1]]])
    new_codes, new_centers = improve(Batch(x, None), codes, centers)
    assert new_codes.tolist() == [[0, 1, 1]]
    assert new_centers.flatten().tolist() == pytest.approx([0, 2.55])


def test_inputs_stay_as_they_were() -> None:
    x, codes = torch.randn(2, 40, 3), torch.randint(8, (2, 40)).int()
    centers = means(x, codes, 8)
    kept = x.clone(), codes.clone(), centers.clone()
    improve(Batch(x, None), codes, centers)
    assert all(torch.equal(a, b) for a, b in zip((x, codes, centers), kept, strict=True))


def test_lloyds_result_gets_better_where_centers_have_few_points() -> None:
    from sklearn.cluster import KMeans

    x = torch.randn(1, 400, 4)
    lloyd = KMeans(64, n_init=1, random_state=0, tol=0).fit(x[0].numpy())
    codes = torch.from_numpy(lloyd.labels_).int().unsqueeze(0)
    new_codes, new_centers = improve(Batch(x, None), codes, means(x, codes, 64))
    assert error(x, new_codes, new_centers) < 0.99 * lloyd.inertia_
