"""A Dask client for the time of a run."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from contextlib import contextmanager


def check_backend(backend: object) -> None:
    """Raises ``ValueError`` for a name of no backend of joblib, which one worker never asks for.

    Example:
        >>> check_backend("threading")
    """
    if backend == "loky" or not isinstance(backend, str):
        return
    from joblib.parallel import BACKENDS, EXTERNAL_BACKENDS, MAYBE_AVAILABLE_BACKENDS

    known = sorted({*BACKENDS, *EXTERNAL_BACKENDS, *MAYBE_AVAILABLE_BACKENDS})
    if backend not in known:
        raise ValueError(f"backend={backend!r} is none of {', '.join(map(repr, known))}")


@contextmanager
def dask_cluster(workers: int, scheduler: str | None = None) -> Iterator[None]:
    """Makes joblib's backend ``"dask"`` usable inside the block.

    A worker that dies costs only the task it was running: Dask runs it again elsewhere.

    Args:
        workers: Processes of a local cluster, which ends with the block; not used with a
            ``scheduler``.
        scheduler: Address of a running scheduler, such as ``"tcp://10.0.0.5:8786"``. Its workers
            must be able to import the modules of the model and of the evaluation.

    Raises:
        ValueError: If Dask is not installed, or the scheduler does not answer.

    Example::

        with dask_cluster(2):
            result = vq.tune(model, evaluate, workers=2, backend="dask")
    """
    try:
        from distributed import Client, LocalCluster
    except ImportError:
        raise ValueError("Dask is not installed: pip install 'vq-plugin[mlops]'") from None
    if scheduler is not None:
        try:
            client = Client(scheduler, timeout=10)  # type: ignore[no-untyped-call]
        except (OSError, ValueError) as error:
            raise ValueError(f"no Dask scheduler at {scheduler!r}: {error}") from None
        with client:
            yield
        return
    local = LocalCluster(  # type: ignore[no-untyped-call]
        n_workers=workers, threads_per_worker=1, dashboard_address=":0", silence_logs=logging.ERROR
    )
    with local, Client(local):  # type: ignore[no-untyped-call]
        yield
