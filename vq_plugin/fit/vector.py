"""K-means on sub-vectors, one codebook per subspace, all subspaces as one batch."""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor

from vq_plugin.fit.batch import BLOCK, Batch
from vq_plugin.fit.exchange import improve
from vq_plugin.fit.kernels import best_kernels
from vq_plugin.fit.parallel import deterministic_map

# Training points per center above which a sample finds the centers as well (faiss uses 256).
_SAMPLE_PER_CENTER = 256
_SAMPLE_LEAST = 1 << 16
_ITERATIONS = 50
_POLISH_ITERATIONS = 25
_TOLERANCE = 1e-4
# Distances concentrate as dimensions grow: one draw is then as good as the best of several.
_HIGH_DIM = 128


def fit_vector(batch: Batch, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centers that minimize the (weighted) squared error: k-means++, Lloyd, exchange.

    Books are fitted in groups that fit a core's cache, side by side on torch's threads. Where a
    book has many more points than centers, a sample finds the centers and a few iterations on all
    points polish them. Gives centers, float32, ``(books, k', dim)``, and codes, ``(books, n)``;
    ``k'`` is the most distinct points of a book, if below ``k``; others repeat a center.
    """
    books, n, _ = batch.x.shape
    step = max(1, BLOCK // (k * min(n, _sample_size(k))))
    starts = range(0, books, step)
    run = partial(_fit_books, batch, k=k, seed=seed, step=step)
    # A single group leaves the threads to the pieces of its assignments.
    results = [run(0)] if len(starts) == 1 else deterministic_map(run, starts)
    widest = max(centers.shape[1] for centers, _ in results)
    centers = torch.cat([repeat_last(centers, widest) for centers, _ in results])
    return centers, torch.cat([codes for _, codes in results])


def _sample_size(k: int) -> int:
    return max(_SAMPLE_PER_CENTER * k, _SAMPLE_LEAST)


def _fit_books(batch: Batch, start: int, *, k: int, seed: int, step: int) -> tuple[Tensor, Tensor]:
    books = batch[start : start + step].contiguous()
    # A seed per group of books; neighbours in ``seed`` must not share draws.
    mixed = (seed * 0x9E3779B97F4A7C15 + start * 0xBF58476D1CE4E5B9) % (1 << 63)
    generator = torch.Generator().manual_seed(mixed)
    size = _sample_size(k)
    iterate = partial(best_kernels().lloyd_iterations, tolerance=_TOLERANCE)
    if books.n > size:
        chosen = torch.randperm(books.n, generator=generator)[:size].sort().values
        sample = books[:, chosen]
        centers, _ = iterate(sample, plus_plus(sample, k, generator), iterations=_ITERATIONS)
        if centers.shape[1] < k:
            # Too few distinct points in the sample: all points decide.
            centers = plus_plus(books, k, generator)
        return iterate(books, centers, iterations=_POLISH_ITERATIONS)
    centers, codes = iterate(books, plus_plus(books, k, generator), iterations=_ITERATIONS)
    codes, centers = improve(books, codes, centers)
    return centers, codes


def plus_plus(batch: Batch, k: int, generator: torch.Generator) -> Tensor:
    """Greedy k-means++ for a batch of books (Arthur & Vassilvitskii 2007, section 2.2).

    Every center is the best of ``2 + ln k`` draws (of one in high dimensions) with probability
    proportional to the squared distance to the centers chosen so far, weighted by the mean of the
    importance over ``dim``. Gives float32, ``(books, k', dim)``; ``k' < k`` where no book has ``k``
    distinct points. In books that run out earlier the last centers repeat.
    """
    books, n, dim = batch.x.shape
    mass = torch.ones(books, n, dtype=torch.float32)
    if batch.importance is not None:
        mass = batch.importance.mean(2)
    trials = 1 if dim > _HIGH_DIM else 2 + int(math.log(k))
    first = torch.rand(books, 1, generator=generator, dtype=torch.float64)
    draws = torch.rand(k - 1, books, trials, generator=generator, dtype=torch.float64)
    return best_kernels().seeds(batch, mass, first, draws)


def repeat_last(centers: Tensor, k: int) -> Tensor:
    """Centers with the last one repeated up to ``k`` per book."""
    missing = k - centers.shape[1]
    return torch.cat([centers, centers[:, -1:].expand(-1, missing, -1)], 1) if missing else centers
