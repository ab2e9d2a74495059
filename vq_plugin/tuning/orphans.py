"""Workers of a search that end with it, however it ends."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Generic, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")

_SECONDS = 0.5
_watched: set[int] = set()


# One of its own, not an equal of others: joblib's Dask backend hashes functions, and waits for ever
# where one, such as a task that holds a dict, has no hash.
@dataclass(frozen=True, eq=False)
class EndsWithItsCaller(Generic[P, R]):
    """A function for workers: a process that runs it ends once its parent, the caller, has.

    A search that is killed cannot end its workers, which would go on with an evaluation of hours.
    Threads of the caller, and workers of other machines, are left alone.

    Example:
        >>> EndsWithItsCaller(max)(1, 2)
        2
    """

    function: Callable[P, R]
    caller: int = field(default_factory=os.getpid)

    def __call__(self, *args: P.args, **kwargs: P.kwargs) -> R:
        """The function's result."""
        if os.getppid() == self.caller and self.caller not in _watched:
            _watched.add(self.caller)
            threading.Thread(target=_end_after, args=(self.caller,), daemon=True).start()
        return self.function(*args, **kwargs)


def _end_after(parent: int) -> None:
    while os.getppid() == parent:
        time.sleep(_SECONDS)
    os._exit(1)
