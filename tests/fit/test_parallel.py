"""Pools of workers: torch's number of threads, autocast, and fits beside each other."""

import threading
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import vq_plugin as vq
from vq_plugin.fit.lloyd import lloyd_step, nearest_codes
from vq_plugin.fit.parallel import deterministic_map, worker_pool


def in_a_new_thread(function: Callable[[], int]) -> int:
    found: list[int] = []
    thread = threading.Thread(target=lambda: found.append(function()))
    thread.start()
    thread.join()
    return found[0]


def test_callers_that_overlap_leave_the_number_of_threads(
    set_threads: Callable[[int], None],
) -> None:
    set_threads(2)
    first_in, second_in = threading.Event(), threading.Event()
    after: list[int] = []

    def first() -> None:
        with worker_pool():
            first_in.set()
            assert second_in.wait(10)
        after.append(torch.get_num_threads())

    def second() -> None:
        # New to torch while the first is inside.
        assert first_in.wait(10)
        with worker_pool():
            second_in.set()
            one.join()
            assert deterministic_map(lambda x: x + 1, range(3)) == [1, 2, 3]
        after.append(torch.get_num_threads())

    one, two = threading.Thread(target=first), threading.Thread(target=second)
    one.start()
    two.start()
    two.join()
    assert after == [2, 2]
    assert torch.get_num_threads() == 2
    assert in_a_new_thread(torch.get_num_threads) == 2


def test_a_pool_inside_a_pool_is_that_pool(set_threads: Callable[[int], None]) -> None:
    set_threads(2)

    def inner(x: int) -> tuple[int, int]:
        with worker_pool():
            return x, torch.get_num_threads()

    with worker_pool():
        with worker_pool():
            assert torch.get_num_threads() == 1
        assert deterministic_map(inner, range(4)) == [(x, 1) for x in range(4)]
        assert torch.get_num_threads() == 1
    assert torch.get_num_threads() == 2


def test_the_number_of_threads_comes_back_after_an_error(
    set_threads: Callable[[int], None],
) -> None:
    set_threads(2)
    with pytest.raises(ValueError, match="wrong"), worker_pool():
        raise ValueError("wrong")
    assert torch.get_num_threads() == 2


def state(small: vq.CodebookWeight) -> list[Tensor]:
    return [small.codes, small.codebooks, *([] if small.scale is None else [small.scale])]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize(
    "scheme",
    [
        vq.KM(k=8, scale="row"),
        vq.PQ(k=8, dim=4),
        vq.RQ(k=8, stages=2, dim=4),
        vq.PQ(k=8, dim=4, codebook_dtype="int8"),
        vq.Binary(),
    ],
    ids=str,
)
def test_autocast_changes_no_fit(scheme: vq.Scheme, dtype: torch.dtype) -> None:
    weight, batches = torch.randn(32, 16), [torch.randn(64, 16)]
    model = nn.Linear(16, 32, bias=False)

    def fits() -> list[Tensor]:
        once = vq.quantize_weight(weight, scheme)
        calibrated = vq.compress(model, scheme, batches)
        return [
            *state(once),
            *state(nearest_codes(weight * 0.9, once)),
            *state(lloyd_step(weight * 0.9, once)),
            *state(calibrated.codebook_weight),
        ]

    expected = fits()
    with torch.autocast("cpu", dtype=dtype):
        found = fits()
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


def test_a_thread_that_was_new_to_torch_while_another_had_a_pool_leaves_no_trace() -> None:
    """It took over the one thread of that pool, and would have handed it on."""
    first, gone = threading.Event(), threading.Event()
    before = torch.get_num_threads()
    torch.set_num_threads(2)

    def late() -> None:
        assert torch.get_num_threads() == 1
        first.set()
        gone.wait(10)
        with worker_pool():
            pass

    try:
        with worker_pool():
            thread = threading.Thread(target=late)
            thread.start()
            assert first.wait(10)
        gone.set()
        thread.join()
        assert in_a_new_thread(torch.get_num_threads) == 2
    finally:
        torch.set_num_threads(before)
