"""Outputs that make up for each other's errors, against the objective by its definition."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

import vq_plugin as vq
from tests.fit.problems import correlated_inputs, kept_moments_of, matrix_of, moments_of
from vq_plugin.fit.output import across as across_module
from vq_plugin.fit.output import coupling, outputs_in_turn
from vq_plugin.fit.output.across import Across, floored_root
from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.output.objective import damped

MOMENTS = {"square": moments_of, "samples": kept_moments_of}
SCHEMES = [
    vq.Uniform(step=0.8, scale="row"),
    vq.Uniform(step=0.8),
    vq.KM(k=4),
    vq.KM(k=4, keep_zeros=True),
    vq.PQ(k=8, dim=2),
    vq.PQ(k=8, dim=4, codebooks="tensor", scale="row"),
    vq.RQ(k=8, stages=2, dim=2),
]


@pytest.fixture(autouse=True)
def _small_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """Errors go from block to block in small problems, too."""
    monkeypatch.setattr(coupling, "_BLOCK", 4)
    monkeypatch.setattr(outputs_in_turn, "_BLOCK", 2)


def normal(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def together(outputs: int, directions: int = 3) -> Tensor:
    """Outputs of which the model feels few directions, and each as much by itself."""
    felt = normal(outputs, directions, seed=5)
    shared = felt @ felt.T
    return 0.5 * (shared + shared.diagonal().diag()) + 0.1 * torch.eye(outputs)


def felt(moments: Moments, matrix: Tensor) -> Moments:
    return dataclasses.replace(moments, outputs=matrix.diagonal().double(), together=matrix)


def harm(change: Tensor, moments: Moments, matrix: Tensor) -> float:
    """``tr(G·E·H·Eᵀ)``."""
    shared = matrix.double().numpy()
    error = change.double().numpy()
    inputs = matrix_of(damped(moments))[0].double().numpy()
    return float(np.trace(shared @ error @ inputs @ error.T))


@pytest.mark.parametrize("form", MOMENTS)
@pytest.mark.parametrize("scheme", SCHEMES, ids=str)
def test_outputs_that_make_up_for_each_other_do_less_harm(scheme: vq.Scheme, form: str) -> None:
    weight = normal(24, 12, seed=1)
    if getattr(scheme, "keep_zeros", False):
        weight[normal(24, 12, seed=2) > 0.5] = 0
    matrix = together(24)
    moments = felt(MOMENTS[form](correlated_inputs(60, 12)), matrix)
    alone = dataclasses.replace(moments, together=None)
    changes = [
        vq.quantize_weight(weight, scheme, moments=each).decode() - weight
        for each in (alone, moments)
    ]
    one, two = (harm(change, moments, matrix) for change in changes)
    assert two < 0.9 * one
    if getattr(scheme, "keep_zeros", False):
        assert bool((changes[1][weight == 0] == 0).all())


def test_one_input_against_all_choices(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a layer of few outputs all codes can be tried: hardly any do less harm."""
    monkeypatch.setattr(outputs_in_turn, "_BLOCK", 1)
    monkeypatch.setattr(across_module, "_FLOOR", 0.0)
    ratios = []
    for seed in range(8):
        weight, matrix = normal(7, 1, seed=seed), together(7, directions=1)
        moments = felt(moments_of(correlated_inputs(50, 1, seed), bias=False), matrix)
        alone = dataclasses.replace(moments, together=None)
        one, two = (
            vq.quantize_weight(weight, vq.Uniform(step=1.0), moments=each)
            for each in (alone, moments)
        )
        centers = two.codebooks.float().flatten()
        least = min(
            harm(centers[list(codes)].unsqueeze(1) - weight, moments, matrix)
            for codes in itertools.product(range(len(centers)), repeat=7)
        )
        found = harm(two.decode() - weight, moments, matrix)
        assert found >= 0.999 * least
        assert found <= harm(one.decode() - weight, moments, matrix)
        ratios.append(found / least)
    assert np.median(ratios) < 1.3


def test_the_factors_give_the_matrix() -> None:
    matrix, scale = together(9), 0.5 + normal(9, seed=3).abs()
    across = Across.of(matrix, scale)
    assert across is not None
    error = normal(1, 5, 9, seed=4)
    by_output = across.errors(error).double().square().sum(1).flatten()
    shared = (matrix * scale.unsqueeze(1) * scale).double()
    size = shared.diagonal()
    floored = shared + across_module._FLOOR * size.mean() * torch.eye(9)
    expected = float((error[0].double() @ floored * error[0].double()).sum())
    assert float(by_output @ across.mass) == pytest.approx(expected, rel=1e-5)
    assert across.order.tolist() == size.argsort(descending=True).tolist()
    root = floored_root(matrix.double(), 0.0)
    assert torch.allclose(root @ root.T, matrix.double())


@pytest.mark.parametrize("matrix", [torch.eye(24), torch.zeros(24, 24)], ids=["apart", "unfelt"])
def test_outputs_that_do_nothing_together_are_fitted_as_they_were(matrix: Tensor) -> None:
    weight, scheme = normal(24, 12, seed=1), vq.Uniform(step=0.5, scale="row")
    moments = felt(moments_of(correlated_inputs(60, 12)), matrix)
    alone = dataclasses.replace(moments, together=None)
    one, two = (vq.quantize_weight(weight, scheme, moments=each) for each in (alone, moments))
    assert torch.equal(one.codes, two.codes)
    assert torch.equal(one.codebooks, two.codebooks)


@pytest.mark.parametrize("scheme", [vq.PQ(k=8, dim=4, axis="out"), vq.KM(k=4, group=8)], ids=str)
def test_outputs_that_share_codes_or_books_are_fitted_as_they_were(scheme: vq.Scheme) -> None:
    weight, moments = (
        normal(24, 12, seed=1),
        felt(moments_of(correlated_inputs(60, 12)), together(24)),
    )
    alone = dataclasses.replace(moments, together=None)
    one, two = (vq.quantize_weight(weight, scheme, moments=each) for each in (alone, moments))
    assert torch.equal(one.codes, two.codes)


def test_an_output_that_nobody_feels_does_not_take_up_the_errors_of_others() -> None:
    """Others may feel it on other data."""
    matrix = together(24)
    matrix[3], matrix[:, 3] = 1e-4 * matrix[3], 1e-4 * matrix[:, 3]
    weight, scheme = normal(24, 12, seed=1), vq.Uniform(step=0.5, scale="row")
    moments = felt(moments_of(correlated_inputs(60, 12)), matrix)
    change = vq.quantize_weight(weight, scheme, moments=moments).decode() - weight
    alone = dataclasses.replace(moments, together=None)
    before = vq.quantize_weight(weight, scheme, moments=alone).decode() - weight
    assert float(change[3].square().sum()) < 4 * float(before[3].square().sum())


def test_bytes_do_not_depend_on_threads(set_threads: Callable[[int], None]) -> None:
    weight, matrix = normal(300, 64, seed=1), together(300)
    moments = felt(moments_of(correlated_inputs(100, 64)), matrix)
    found = []
    for count in (1, 2, 3):
        set_threads(count)
        found.append(vq.quantize_weight(weight, vq.Uniform(scale="row"), moments=moments))
    for other in found[1:]:
        assert torch.equal(found[0].codes, other.codes)
        assert torch.equal(found[0].codebooks, other.codebooks)
