"""Codebooks have no center that is nobody's."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import vq_plugin as vq
from tests.fit.problems import correlated_inputs, moments_of
from vq_plugin.codebook import decode
from vq_plugin.fit.output.objective import Quantized
from vq_plugin.fit.used import used_centers


@given(
    stages=st.integers(1, 2), groups=st.integers(1, 3), books=st.integers(1, 3),
    k=st.integers(1, 9), seed=st.integers(0, 99),
)  # fmt: skip
def test_the_weight_stays_and_the_fullest_codebook_has_no_center_too_many(
    stages: int, groups: int, books: int, k: int, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    group, subspaces, dim = 2, 6, 2
    # Few of the centers: codes of powers of what is uniform.
    chosen = torch.rand(stages, groups * group, subspaces, generator=generator) ** 3
    codes = (chosen * k).to(torch.uint8)
    codebooks = torch.randn(stages, groups, books, k, dim, generator=generator)
    one = group if groups > 1 else None

    small = used_centers(Quantized(codes, codebooks), one)

    shape = (groups * group, subspaces * dim)
    before, after = (
        decode(each.codes.to(torch.uint8), each.codebooks, None, shape=shape, axis="in", group=one)
        for each in (Quantized(codes, codebooks), small)
    )
    assert torch.equal(before, after)
    needed = max(
        len({int(code) for code in codes[s, g * group : (g + 1) * group, b::books].flatten()})
        for s in range(stages) for g in range(groups) for b in range(books)
    )  # fmt: skip
    assert small.codebooks.shape == (stages, groups, books, needed, dim)


@pytest.mark.parametrize("scheme", [vq.Uniform(step=0.2, scale="row"), vq.KM(k=64), vq.PQ(k=64)])
def test_calibrated_fits_leave_no_center_without_a_weight(scheme: vq.Scheme) -> None:
    inputs = correlated_inputs(200, 24)
    # Single weights that are far off take centers with them where others make up for them.
    weight = torch.randn(32, 24, generator=torch.Generator().manual_seed(1)) ** 3
    small = vq.quantize_weight(weight, scheme, moments=moments_of(inputs))
    by_book = small.codes[0].T if small.codebooks.shape[2] > 1 else small.codes[0].reshape(1, -1)
    assert max(len(codes.unique()) for codes in by_book) == small.k
