"""Work on several threads with results that do not depend on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")


class _Local(threading.local):
    inside = False
    pool: ThreadPoolExecutor | None = None


class _Threads:
    """Torch's number of threads while somebody is in a pool, and how many are."""

    lock = threading.Lock()
    callers = 0
    before = 1


_local = _Local()


@contextmanager
def worker_pool() -> Iterator[None]:
    """Gives :func:`deterministic_map` a pool of as many threads as torch has.

    Inside, torch itself runs on one thread, here and in the workers: a matrix product may round
    differently on several, and torch's own threads would spin beside the workers. And it computes
    in the dtypes that the code says, whatever the caller's autocast is. Threads of the caller may
    be in pools of their own at the same time.
    """
    if _local.inside:
        yield
        return
    with (
        _one_torch_thread() as threads,
        torch.autocast("cpu", enabled=False),
        ThreadPoolExecutor(threads, initializer=_start_worker) as pool,
    ):
        _local.inside, _local.pool = True, pool if threads > 1 else None
        try:
            yield
        finally:
            _local.inside, _local.pool = False, None


def _start_worker() -> None:
    _local.inside = True
    torch.set_num_threads(1)


def _torch_threads() -> int:
    """Torch's number of threads, also in a thread that was new to torch while others had a pool."""
    own = torch.get_num_threads()
    if own > 1:
        return own
    with ThreadPoolExecutor(1) as new:
        return new.submit(torch.get_num_threads).result()


@contextmanager
def _one_torch_thread() -> Iterator[int]:
    """Sets torch's number of threads to one, and gives what it was before the first caller came.

    A thread that is new to torch takes over what was set last, in whatever thread: also the one of
    another caller.
    """
    with _Threads.lock:
        if _Threads.callers == 0:
            _Threads.before = _torch_threads()
        _Threads.callers += 1
        threads = _Threads.before
    torch.set_num_threads(1)
    try:
        yield threads
    finally:
        with _Threads.lock:
            _Threads.callers -= 1
            torch.set_num_threads(threads)


def deterministic_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Maps over the threads of the surrounding :func:`worker_pool`; results come in order.

    The *caller* cuts the work into pieces whose sizes depend on the data alone, and every piece
    is computed on one thread: the same bytes for any number of threads. Outside a pool, and
    inside another map, the pieces run one after the other; so does a single one, as starting a
    thread takes longer than to fit a small layer.
    """
    pieces = list(items)
    if _local.pool is None or len(pieces) < 2:
        return [function(item) for item in pieces]
    return list(_local.pool.map(function, pieces))
