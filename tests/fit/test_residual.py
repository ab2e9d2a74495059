"""Residual quantization: more stages, less error, and no worse than stage by stage."""

from itertools import pairwise

import pytest
import torch
from torch import Tensor

import vq_plugin as vq
from tests.fit.peers import stage_by_stage


def sse(weight: Tensor, scheme: vq.Scheme, importance: Tensor | None = None) -> float:
    decoded = vq.quantize_weight(weight, scheme, importance).decode()
    square = (decoded.double() - weight.double()).square()
    return float((square if importance is None else square * importance).sum())


@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
@pytest.mark.parametrize("axis", ["in", "out"])
@pytest.mark.parametrize("dim", [None, 4, 7])
def test_every_stage_lowers_the_error(codebooks: str, axis: str, dim: int | None) -> None:
    weight = torch.randn(60, 40)
    errors = [
        sse(weight, vq.RQ(k=8, stages=t, dim=dim, axis=axis, codebooks=codebooks))  # type: ignore[arg-type]
        for t in (1, 2, 3, 4)
    ]
    assert all(b < 0.97 * a for a, b in pairwise(errors))


@pytest.mark.parametrize(("k", "stages", "dim"), [(8, 2, 4), (16, 3, 8), (16, 2, 32), (4, 4, 2)])
def test_the_error_is_not_above_scikit_learn_stage_by_stage(k: int, stages: int, dim: int) -> None:
    weight = torch.randn(128, 32)
    scheme = vq.RQ(k=k, stages=stages, dim=dim, codebook_dtype="float32")
    theirs = (stage_by_stage(weight, k, stages, dim) - weight.double()).square().sum()
    assert sse(weight, scheme) <= float(theirs) * 1.005


@pytest.mark.parametrize("codebooks", ["subspace", "tensor"])
def test_one_stage_is_product_quantization(codebooks: str) -> None:
    weight = torch.randn(256, 32)
    rq = vq.RQ(k=16, stages=1, dim=4, codebooks=codebooks)  # type: ignore[arg-type]
    pq = vq.PQ(k=16, dim=4, codebooks=codebooks)  # type: ignore[arg-type]
    assert sse(weight, rq) == pytest.approx(sse(weight, pq), rel=0.01)
    one, other = vq.quantize_weight(weight, rq), vq.quantize_weight(weight, pq)
    assert one.nbytes == other.nbytes


def test_dim_none_is_the_whole_row() -> None:
    weight = torch.randn(40, 6, 3, 3)
    small = vq.quantize_weight(weight, vq.RQ(k=8, stages=2))
    assert small.codes.shape == (2, 40, 1)
    assert small.codebooks.shape == (2, 1, 1, 8, 54)


def test_importance_lowers_the_weighted_error() -> None:
    weight, importance = torch.randn(128, 32), torch.rand(32).pow(6) + 1e-3
    scheme = vq.RQ(k=16, stages=2, dim=8)
    plain = vq.quantize_weight(weight, scheme).decode()
    unweighted = float(((plain - weight).square() * importance).sum())
    assert sse(weight, scheme, importance) < 0.8 * unweighted


def test_rows_that_one_stage_reproduces_leave_nothing_to_the_second() -> None:
    weight = torch.randn(8, 12).repeat(4, 1)
    small = vq.quantize_weight(weight, vq.RQ(k=16, stages=3, codebook_dtype="float32"))
    assert small.k == 8
    assert torch.allclose(small.decode(), weight, atol=1e-6)


def test_rounding_to_half_precision_costs_almost_nothing() -> None:
    weight = torch.randn(128, 32)
    half, single = (
        sse(weight, vq.RQ(k=16, stages=3, dim=8, codebook_dtype=dtype))
        for dtype in ("float16", "float32")
    )
    assert half <= single * 1.001
