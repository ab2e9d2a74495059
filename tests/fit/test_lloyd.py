"""One step of Lloyd's algorithm, against scikit-learn and explicit loops."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.cluster import KMeans
from torch import Tensor

import vq_plugin as vq
from vq_plugin.fit.lloyd import lloyd_step, nearest_codes

FLOAT32 = {"codebook_dtype": "float32"}
SCHEMES = [
    vq.KM(k=5, **FLOAT32),
    vq.KM(k=4, group=3, **FLOAT32),
    vq.KM(k=4, scale="row", **FLOAT32),
    vq.PQ(k=4, dim=3, **FLOAT32),
    vq.PQ(k=5, dim=4, axis="out", scale="row", **FLOAT32),
    vq.PQ(k=6, dim=3, codebooks="tensor", **FLOAT32),
    vq.RQ(k=4, stages=3, dim=4, **FLOAT32),
    vq.RQ(k=4, stages=2, codebooks="tensor", dim=3, **FLOAT32),
]


def error(small: vq.CodebookWeight, weight: Tensor, importance: Tensor | None = None) -> float:
    square = (small.decode().double() - weight.double()).square()
    return float((square if importance is None else square * importance).sum())


@given(
    scheme=st.sampled_from(SCHEMES),
    rows=st.integers(1, 12),
    length=st.integers(1, 14),
    weighted=st.booleans(),
    seed=st.integers(0, 99),
)
@settings(max_examples=80, deadline=None)
def test_no_step_raises_the_error(
    scheme: vq.Scheme, rows: int, length: int, weighted: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    weight, importance = torch.randn(rows, length), None
    small = vq.quantize_weight(weight, scheme)
    weight = weight + 0.3 * torch.randn(rows, length)
    if weighted:
        importance = torch.rand(length) + 0.1
    errors = [error(small, weight, importance)]
    again = nearest_codes(weight, small, importance)
    assert torch.equal(again.codebooks, small.codebooks)
    errors.append(error(again, weight, importance))
    for _ in range(3):
        small = lloyd_step(weight, small, importance)
        errors.append(error(small, weight, importance))
    slack = 1e-5 * errors[0] + 1e-6
    assert all(late <= early + slack for early, late in pairwise(errors))


@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
def test_sub_vectors_step_as_scikit_learn(codebooks: str) -> None:
    torch.manual_seed(0)
    scheme = vq.PQ(k=6, dim=2, codebooks=codebooks, **FLOAT32)
    small = vq.quantize_weight(torch.randn(40, 6), scheme)
    weight = torch.randn(40, 6)
    stepped = lloyd_step(weight, small)
    for book in range(small.codebooks.shape[2]):
        cut = weight.reshape(40, 3, 2)
        points = cut.reshape(-1, 2) if codebooks == "tensor" else cut[:, book]
        start = small.codebooks[0, 0, book].numpy()
        peer = KMeans(6, init=start, n_init=1, max_iter=1, tol=0).fit(points.numpy())
        np.testing.assert_allclose(
            stepped.codebooks[0, 0, book].numpy(), peer.cluster_centers_, rtol=1e-4, atol=1e-5
        )


def test_single_weights_step_as_scikit_learn() -> None:
    torch.manual_seed(0)
    small = vq.quantize_weight(torch.randn(20, 10), vq.KM(k=7, **FLOAT32))
    weight = torch.randn(20, 10) + 0.2
    start = small.codebooks.reshape(7, 1).numpy()
    peer = KMeans(7, init=start, n_init=1, max_iter=1, tol=0).fit(weight.reshape(-1, 1).numpy())
    stepped = lloyd_step(weight, small)
    np.testing.assert_allclose(
        stepped.codebooks.flatten().numpy(), peer.cluster_centers_.flatten(), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("scheme", SCHEMES[:6], ids=str)
def test_codes_are_nearest(scheme: vq.Scheme) -> None:
    torch.manual_seed(1)
    small = vq.quantize_weight(torch.randn(9, 8), scheme)
    weight = torch.randn(9, 8)
    found = nearest_codes(weight, small)
    # Whatever single code is changed, the error does not fall.
    best = error(found, weight)
    for at in np.ndindex(*found.codes.shape):
        for other in range(found.k):
            codes = found.codes.clone()
            codes[at] = other
            assert error(replace(found, codes=codes), weight) >= best - 1e-5


def test_a_center_without_points_stays() -> None:
    small = vq.quantize_weight(torch.tensor([[0.0, 1.0, 9.0]]), vq.KM(k=3))
    stepped = lloyd_step(torch.tensor([[0.5, 1.5, 1.0]]), small)
    assert stepped.codebooks.flatten().tolist() == [0.5, 1.25, 9.0]


def test_the_zero_of_keep_zeros_stays() -> None:
    weight = torch.tensor([[0.0, 0.0, 1.0, -1.0]])
    small = vq.quantize_weight(weight, vq.KM(k=3, keep_zeros=True))
    moved = torch.tensor([[0.0, 0.25, 1.5, -1.5]])
    assert lloyd_step(moved, small).codebooks.flatten().tolist() == [-1.5, 0.0, 1.5]
    free = vq.quantize_weight(weight, vq.KM(k=3))
    assert lloyd_step(moved, free).codebooks.flatten().tolist() == [-1.5, 0.125, 1.5]


def test_binary_is_fitted_anew() -> None:
    small = vq.quantize_weight(torch.randn(4, 6), vq.Binary(scale="row"))
    weight = torch.randn(4, 6)
    stepped, fitted = lloyd_step(weight, small), vq.quantize_weight(weight, small.scheme)
    assert torch.equal(stepped.decode(), fitted.decode())
    assert torch.equal(nearest_codes(weight, small).codes[0] == 1, weight > 0)


@pytest.mark.parametrize("scheme", [*SCHEMES, vq.PQ(k=16, dim=4)], ids=str)
def test_the_bytes_do_not_depend_on_threads(scheme: vq.Scheme) -> None:
    torch.manual_seed(2)
    small, weight = vq.quantize_weight(torch.randn(300, 96), scheme), torch.randn(300, 96)
    threads, results = torch.get_num_threads(), []
    try:
        for count in (1, 3):
            torch.set_num_threads(count)
            results.append(lloyd_step(weight, small))
    finally:
        torch.set_num_threads(threads)
    one, other = results
    assert torch.equal(one.codes, other.codes)
    assert torch.equal(one.codebooks, other.codebooks)


def test_weights_that_are_not_finite_are_refused() -> None:
    small = vq.quantize_weight(torch.randn(4, 6), vq.KM(k=4))
    for step in (lloyd_step, nearest_codes):
        with pytest.raises(ValueError, match="NaN"):
            step(torch.full((4, 6), torch.nan), small)
        with pytest.raises(ValueError, match="does not broadcast"):
            step(torch.randn(4, 6), small, torch.ones(5))
