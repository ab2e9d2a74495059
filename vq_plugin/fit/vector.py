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
from vq_plugin.fit.sample import stratified

# Training points per center above which a sample finds the centers nearly as well (faiss uses 256).
_SAMPLE_PER_CENTER = 256
_SAMPLE_LEAST = 1 << 16
# How much larger each next sample is, and the last one but all points.
_GROWTH = 4
_SAMPLE_MOST = 1 << 20
_ITERATIONS = 50
# On every next sample; on all points fewer where that are more visits to points than these.
_POLISH_ITERATIONS, _FEWEST_ITERATIONS = 25, 3
_POLISH_VISITS = 1 << 23
_TOLERANCE = 1e-4
# Distances concentrate as dimensions grow: one draw is then as good as the best of several.
_HIGH_DIM = 128


def fit_vector(batch: Batch, k: int, seed: int) -> tuple[Tensor, Tensor]:
    """Centers that minimize the (weighted) squared error: k-means++, Lloyd, exchange.

    Books are fitted in groups that fit a core's cache, side by side on torch's threads. Where a
    book has many more points than centers, a sample finds the centers, and iterations on larger
    and larger ones polish them, a few at last on all points. Gives centers, float32,
    ``(books, k', dim)``, and codes, ``(books, n)``; ``k'`` is the most distinct points of a book,
    if below ``k``; others repeat a center.
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
    iterate = partial(best_kernels().lloyd_iterations, tolerance=_TOLERANCE)
    size = _sample_size(k)
    if books.n > size:
        return _fit_growing(books, size, k, generator)
    centers, codes = iterate(books, plus_plus(books, k, generator), iterations=_ITERATIONS)
    codes, centers = improve(books, codes, centers)
    return centers, codes


def _fit_growing(
    books: Batch, size: int, k: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    iterate = partial(best_kernels().lloyd_iterations, tolerance=_TOLERANCE)
    centers, iterations = None, _ITERATIONS
    while size < books.n and size <= _SAMPLE_MOST:
        sample = books[:, stratified(books.n, size, generator)]
        # A sample may have too few distinct points.
        if centers is None or centers.shape[1] < k:
            centers = plus_plus(sample, k, generator)
        centers, _ = iterate(sample, centers, iterations=iterations)
        size, iterations = size * _GROWTH, _POLISH_ITERATIONS
    assert centers is not None
    if centers.shape[1] < k:
        centers = plus_plus(books, k, generator)
    iterations = min(max(_POLISH_VISITS // books.n, _FEWEST_ITERATIONS), _POLISH_ITERATIONS)
    return iterate(books, centers, iterations=iterations)


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
