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
    pool: ThreadPoolExecutor | None = None


_local = _Local()


@contextmanager
def worker_pool() -> Iterator[None]:
    """Gives :func:`deterministic_map` a pool of as many threads as torch has.

    Inside, torch itself runs on one thread, here and in the workers: a matrix product may round
    differently on several, and torch's own threads would spin beside the workers.
    """
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
            _local.pool = pool if threads > 1 else None
            yield
    finally:
        _local.pool = None
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
