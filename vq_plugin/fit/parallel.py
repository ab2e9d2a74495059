"""Work on several threads with results that do not depend on how many there are."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

T = TypeVar("T")
R = TypeVar("R")

_worker = threading.local()


def _enter_worker() -> None:
    torch.set_num_threads(1)
    _worker.active = True


def deterministic_map(function: Callable[[T], R], items: Iterable[T]) -> list[R]:
    """Maps over ``torch.get_num_threads()`` threads, each running torch on one thread.

    A matrix product may round differently when its threads change. Here the *caller* cuts the
    work into pieces whose sizes depend on the data alone, every piece is computed on a single
    thread, and the results come back in order: the same bytes for any number of threads. Called
    from inside itself, it runs the inner pieces one after the other.
    """
    if getattr(_worker, "active", False):
        return [function(item) for item in items]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(threads, initializer=_enter_worker) as pool:
            return list(pool.map(function, items))
    finally:
        # torch keeps one process-wide figure beside each thread's own; restore it.
        torch.set_num_threads(threads)


def on_one_thread(function: Callable[[], R]) -> R:
    """Runs a function with torch on one thread, for the same bytes on any number of them."""
    return deterministic_map(lambda _: function(), (None,))[0]
