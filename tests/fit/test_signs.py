"""One size for every block: against all ways to group the blocks of a small weight."""

import itertools
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

import vq_plugin as vq


def weight(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns, generator=torch.Generator().manual_seed(rows + columns))


@given(st.integers(1, 30), st.integers(1, 30), st.integers(1, 5), st.integers(1, 8))
def test_blocks_have_one_size_and_weights_their_signs(
    rows: int, columns: int, block: int, levels: int
) -> None:
    matrix = weight(rows, columns)
    small = vq.quantize_weight(matrix, vq.Signs(levels, block, codebook_dtype="float32"))
    decoded = small.decode()
    assert bool((decoded.sign() == matrix.sign()).all())
    for piece in decoded.abs().split(block, 1):
        assert bool((piece == piece[:, :1]).all())
    assert len(decoded.abs().unique()) <= levels
    assert small.k <= small.scheme.geometry((rows, columns)).k


@pytest.mark.parametrize("weighted", [False, True])
def test_sizes_are_the_best_there_are(weighted: bool) -> None:
    matrix = weight(3, 6)
    importance = weight(3, 7)[:, :6].square() + 0.1 if weighted else torch.ones(3, 6)
    scheme = vq.Signs(levels=3, block=3, codebook_dtype="float32")
    small = vq.quantize_weight(matrix, scheme, importance if weighted else None)
    error = float(((small.decode() - matrix).square() * importance).sum())
    blocks, masses = matrix.abs().reshape(6, 3), importance.reshape(6, 3)
    least = float("inf")
    for groups in itertools.product(range(3), repeat=6):
        total = 0.0
        for group in set(groups):
            at = torch.tensor([each == group for each in groups])
            values, mass = blocks[at], masses[at]
            size = (values * mass).sum() / mass.sum()
            total += float(((values - size).square() * mass).sum())
        least = min(least, total)
    assert error == pytest.approx(least, rel=1e-4)


@pytest.mark.parametrize("codebook_dtype", ["float16", "bfloat16", "float32", "int8"])
@pytest.mark.parametrize("scale", [None, "row"])
def test_in_a_model_and_in_a_file(codebook_dtype: Any, scale: Any, tmp_path: Path) -> None:
    model = nn.Sequential(nn.Conv2d(4, 32, 3), nn.Flatten(), nn.Linear(1152, 30))
    scheme = vq.Signs(levels=8, block=4, codebook_dtype=codebook_dtype, scale=scale)
    small = vq.compress(model, scheme, [torch.randn(8, 4, 8, 8)])
    size = vq.save(small, tmp_path / "small.vq")
    x = torch.randn(2, 4, 8, 8)
    assert torch.equal(vq.load(tmp_path / "small.vq", model)(x), small(x))
    # 1 + 3 / 4 bits each, a table of 128 patterns of 4, and the rest.
    assert size < (1152 * 31) * 1.75 / 8 + 2 * (128 * 4 * 4 + 1100) + 1000
    sizes = small[2].weight.abs() if scale is None else None  # type: ignore[index, union-attr, operator]
    assert sizes is None or len(sizes.unique()) <= 8


def test_a_tail_of_a_row_does_not_pull_sizes() -> None:
    matrix = torch.full((40, 5), 2.0)
    assert torch.equal(vq.quantize_weight(matrix, vq.Signs(levels=1, block=4)).decode(), matrix)


@pytest.mark.parametrize(("levels", "block"), [(16, 8), (2, 8), (1, 9), (17, 4), (1, 1 << 40)])
def test_too_many_patterns(levels: int, block: int) -> None:
    with pytest.raises(ValueError, match=r"make more than 256 centers.*lower one"):
        vq.Signs(levels, block)


@pytest.mark.parametrize(("levels", "block"), [(0, 2), (2, 0), (1.5, 2), (True, 2)])
def test_settings_out_of_range(levels: Any, block: Any) -> None:
    with pytest.raises(ValueError, match="must be a whole number of at least 1"):
        vq.Signs(levels, block)
