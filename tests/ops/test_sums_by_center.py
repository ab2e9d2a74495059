"""Gradients of centers by the native kernel: sums over the sub-vectors that use them."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from vq_plugin import ops

pytestmark = pytest.mark.skipif(ops.native() is None, reason="there are no kernels")
Case = tuple[int, int, int, int, int, int, int, bool]
# Rows, length, stages, k, dim, books (0: one for each subspace), rows per group or 0, along_out.
CASES: list[Case] = [
    (17, 37, 1, 16, 4, 0, 0, False),
    (64, 96, 2, 16, 8, 0, 0, True),
    (200, 33, 1, 5, 1, 1, 0, False),
    (48, 40, 1, 16, 2, 1, 16, False),
    (40, 50, 1, 256, 3, 0, 0, False),
    (30, 128, 2, 200, 8, 1, 0, True),
    (33, 18 * 4, 1, 16, 4, 2, 0, False),  # nine positions, two pieces of channels
    (50, 20, 1, 100, 1, 1, 7, False),
]


def case(numbers: Case) -> tuple[Tensor, Tensor, list[int], int]:
    rows, length, stages, k, dim, books, group, _ = numbers
    subspaces = -(-length // dim)
    groups = -(-rows // group) if group else 1
    codes = torch.randint(k, (stages, rows, subspaces), dtype=torch.uint8)
    return torch.randn(rows, length), codes, [stages, groups, books or subspaces, k, dim], group


def by_loops(grad: Tensor, codes: Tensor, shape: list[int], group: int) -> Tensor:
    _, _, books, _, dim = shape
    sums = torch.zeros(shape, dtype=torch.float64)
    for stage, of_stage in enumerate(codes.tolist()):
        for row, of_row in enumerate(of_stage):
            for subspace, code in enumerate(of_row):
                part = grad[row, subspace * dim : (subspace + 1) * dim].double()
                place = sums[stage, row // group if group else 0, subspace % books, code]
                place[: len(part)] += part
    return sums


@pytest.mark.parametrize("numbers", CASES, ids=str)
def test_sums_are_those_of_plain_loops(numbers: Case, set_threads: Callable[[int], None]) -> None:
    grad, codes, shape, group = case(numbers)
    along_out, expected = numbers[-1], by_loops(grad, codes, shape, group)
    k = shape[3]
    layouts = [codes]
    if ops.packs(k, group or None):
        layouts.append(ops.pack_codes(codes, along_out=along_out))
    for held in layouts:
        for given in (grad, grad.T.contiguous().T):
            set_threads(1)
            found = torch.ops.vq.sums_by_center(given, held, shape, along_out, group)
            torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
            set_threads(2)
            again = torch.ops.vq.sums_by_center(given, held, shape, along_out, group)
            assert torch.equal(found, again)


def test_the_number_of_threads_changes_no_bit_of_large_sums(
    set_threads: Callable[[int], None],
) -> None:
    for numbers in ((1024, 1024, 1, 16, 1, 1, 0, False), (1024, 1024, 1, 16, 4, 0, 0, False)):
        grad, codes, shape, group = case(numbers)
        found = []
        for threads in (1, 2, 3):
            set_threads(threads)
            found.append(torch.ops.vq.sums_by_center(grad, codes, shape, False, group))
        assert torch.equal(found[0], found[1])
        assert torch.equal(found[0], found[2])


@pytest.mark.parametrize(
    ("codes", "shape"),
    [
        (torch.zeros(1, 8, 4, dtype=torch.uint8), [1, 1, 4, 16, 4]),
        (torch.zeros(1, 8, 5, dtype=torch.uint8), [1, 1, 4, 16, 4]),
        (torch.zeros(1, 8, 5, dtype=torch.int64), [1, 1, 5, 16, 4]),
        (torch.zeros(1, 8, 5, dtype=torch.uint8), [1, 1, 5, 300, 4]),
        (torch.zeros(1, 8, 5, dtype=torch.uint8), [1, 2, 5, 16, 4]),
        (torch.zeros(1, 8, 5, dtype=torch.uint8), [1, 5, 16, 4]),
    ],
)
def test_what_is_not_of_one_weight_is_refused(codes: Tensor, shape: list[int]) -> None:
    with pytest.raises(RuntimeError, match="sums_by_center"):
        torch.ops.vq.sums_by_center(torch.zeros(8, 20), codes, shape, False, 0)
