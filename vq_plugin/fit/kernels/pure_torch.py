"""The kernels of the fits in torch and NumPy."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from vq_plugin.fit.batch import BLOCK, Batch, chosen
from vq_plugin.fit.kernels.clusters import BLOCK_POINTS, Clusters
from vq_plugin.fit.kernels.distances import nearest_center, squared_distances, sums_by_slot
from vq_plugin.fit.kernels.protocol import Chooser, Kernels, Sweep
from vq_plugin.fit.kernels.stepwise import Stepwise
from vq_plugin.fit.line import Points, sorted_points
from vq_plugin.fit.optimal import Float64, Int64, even_starts, optimal_starts
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.schemes import torch_code_dtype

_FEWEST_POINTS = 1024
# For more centers than this a window of the dynamic program is faster than the recursion.
_MANY = 64
_EVEN = 8
_BINS = 1 << 14
_FEW_BOUNDARIES = 8


class TorchKernels(Kernels):
    """Matrix products, whose scores fit a core's cache, and sums of torch."""

    def assign(self, batch: Batch, centers: Tensor) -> Tensor:
        """In pieces, side by side."""
        codes = torch.empty(batch.x.shape[:2], dtype=torch_code_dtype(centers.shape[1]))

        def fill(piece: tuple[slice, slice]) -> None:
            codes[piece] = self._nearest(batch[piece], centers[piece[0]])[0]

        deterministic_map(fill, self._pieces(batch, centers.shape[1]))
        return codes

    def assign_with_error(self, batch: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
        """In pieces, side by side."""
        # Pieces write into one tensor: kept one by one, their small results would lie between the
        # large temporary ones and keep the allocator from using that memory again.
        codes = torch.empty(batch.x.shape[:2], dtype=torch_code_dtype(centers.shape[1]))
        distance = torch.empty(codes.shape, dtype=torch.float32)

        def fill(piece: tuple[slice, slice]) -> None:
            codes[piece], distance[piece] = self._nearest(batch[piece], centers[piece[0]])

        deterministic_map(fill, self._pieces(batch, centers.shape[1]))
        return codes, distance

    def _nearest(self, block: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
        return nearest_center(block, centers)

    def _pieces(self, batch: Batch, k: int) -> Iterator[tuple[slice, slice]]:
        """Books and points of one call."""
        book_step, point_step = self._piece_size(batch, k)
        for book in range(0, batch.x.shape[0], book_step):
            for point in range(0, batch.n, point_step):
                yield slice(book, book + book_step), slice(point, point + point_step)

    def _piece_size(self, batch: Batch, k: int) -> tuple[int, int]:
        book_step = max(1, BLOCK // (k * min(batch.n, _FEWEST_POINTS)))
        return book_step, max(1, BLOCK // (k * min(batch.x.shape[0], book_step)))

    def means(self, batch: Batch, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """All books at once."""
        slots = (codes.long() + torch.arange(len(codes)).unsqueeze(1) * k).flatten()
        shape = (len(codes), k, -1)
        if batch.importance is None:
            mass = torch.bincount(slots, minlength=len(codes) * k).float().reshape(shape)
            sums = sums_by_slot(batch.x, slots, len(codes) * k)
        else:
            mass = sums_by_slot(batch.importance, slots, len(codes) * k).reshape(shape)
            sums = sums_by_slot(batch.x * batch.importance, slots, len(codes) * k)
        return sums.reshape(shape) / mass.clamp_min(torch.finfo(torch.float32).tiny), mass

    def seeds(self, batch: Batch, mass: Tensor, first: Tensor, draws: Tensor) -> Tensor:
        """All books at once, center by center."""
        middle = batch.x.mean(1, keepdim=True)
        x = batch.x - middle
        norm = torch.linalg.vector_norm(x, dim=2).square()
        centers = chosen(x, _draw(mass, first))
        nearest = squared_distances(x, norm, centers).squeeze(1)
        for draw in draws:
            potential = nearest * mass
            if not bool((potential > 0).any()):
                break
            candidates = chosen(x, _draw(potential, draw))
            distance = torch.minimum(squared_distances(x, norm, candidates), nearest.unsqueeze(1))
            best = torch.bmm(distance, mass.unsqueeze(2)).argmin(1, keepdim=True)
            nearest = distance.gather(1, best.expand(-1, 1, batch.n)).squeeze(1)
            centers = torch.cat([centers, chosen(candidates, best.squeeze(2))], 1)
        return centers + middle

    def lloyd_iterations(
        self, batch: Batch, centers: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """All books at once; the codes are those of the last assignment."""
        error = torch.full((len(centers),), math.inf, dtype=torch.float64)
        for _ in range(iterations):
            codes, distance = self.assign_with_error(batch, centers)
            total = distance.sum(1, dtype=torch.float64)
            falls = total < error * (1 - tolerance)
            if not bool(falls.any()):
                return centers, codes
            error = torch.where(falls, total, error)
            means, mass = self.means(batch, codes, centers.shape[1])
            occupied = mass.amax(2) > 0
            done = ~falls.unsqueeze(1)
            centers = torch.where((occupied & ~done).unsqueeze(2), means, centers)
            _reseed(batch, centers, occupied | done, distance)
            # Not beside the next ones: they are a third as large as a weight.
            del codes, distance
        return centers, self.assign(batch, centers)

    def exchange(self, batch: Batch, codes: Tensor, k: int, *, sweeps: int) -> Tensor:
        """Some books at a time, side by side."""
        step = max(1, BLOCK // (k * BLOCK_POINTS))

        def exchanged(start: int) -> Tensor:
            books = slice(start, start + step)
            return self._exchange(batch[books], codes[books], k, sweeps)

        return torch.cat(deterministic_map(exchanged, range(0, len(codes), step)))

    def _exchange(self, batch: Batch, codes: Tensor, k: int, sweeps: int) -> Tensor:
        """A sweep that does not lower a book's error ends it."""
        clusters = Clusters.of(batch, codes, k)
        best, best_gain = clusters.slots.clone(), clusters.gain()
        for _ in range(sweeps):
            clusters.sweep(batch)
            gain = clusters.gain()
            better = gain > best_gain
            if not bool(better.any()):
                break
            best = torch.where(better.unsqueeze(1), clusters.slots, best)
            best_gain = torch.maximum(gain, best_gain)
        return (best - clusters.first).to(codes.dtype)

    def few_centers(self, values: Tensor, k: int) -> Tensor | None:
        """As of many."""
        del values, k
        return None

    def points(self, values: Tensor, importance: Tensor | None, k: int) -> Points:
        """Sorted."""
        del k
        return sorted_points(values, importance)

    def interval_starts(self, mass: Float64, moment: Float64, k: int, *, even: bool) -> Int64:
        """By NumPy."""
        if even and k > _MANY and len(mass) - 1 > _EVEN * k:
            starts = even_starts(mass, moment, k)
            if starts is not None:
                return starts
        return optimal_starts(mass, moment, k)

    def code_search(self, boundaries: Tensor) -> Callable[[Tensor], Tensor]:
        """By a table of bins where each holds one boundary at most."""
        return _binned_search(boundaries) or partial(torch.bucketize, boundaries=boundaries)

    def chooser(self, sweep: Sweep) -> Chooser:
        """For all outputs at once."""
        return Stepwise(sweep)


def _draw(weight: Tensor, draws: Tensor) -> Tensor:
    """Indices that numbers in [0, 1), ``(books, count)``, draw in proportion to ``weight``."""
    total = weight.double().cumsum(1)
    return torch.searchsorted(total, draws * total[:, -1:], right=True).clamp_(
        max=weight.shape[1] - 1
    )


def _reseed(batch: Batch, centers: Tensor, occupied: Tensor, distance: Tensor) -> None:
    """Moves every center without points to one of its book's worst points."""
    for book in torch.nonzero(~occupied.all(1)).flatten().tolist():
        empty = torch.nonzero(~occupied[book]).flatten()
        worst = distance[book].topk(min(len(empty), batch.n))
        useful = worst.indices[worst.values > 0]
        centers[book, empty[: len(useful)]] = batch.x[book, useful]


def _binned_search(boundaries: Tensor) -> Callable[[Tensor], Tensor] | None:
    """``torch.bucketize`` by even bins with at most one boundary each, several times faster.

    ``None`` where two boundaries share a bin. Rounding does no harm: the bin of a value never
    falls as the value grows, and boundaries are binned like values.
    """
    if len(boundaries) < _FEW_BOUNDARIES:
        return None
    low, width = boundaries[0], (boundaries[-1] - boundaries[0]) / (_BINS - 1)

    def bin_of(values: Tensor) -> Tensor:
        return ((values - low) / width).clamp_(0, _BINS - 1).int()

    used = bin_of(boundaries).long()
    if not bool(width > 0) or bool((used.diff() == 0).any()):
        return None
    before = torch.searchsorted(used, torch.arange(_BINS)).to(torch_code_dtype(len(boundaries) + 1))
    inside = torch.full((_BINS,), torch.inf, dtype=torch.float32)
    inside[used] = boundaries

    def search(values: Tensor) -> Tensor:
        index = bin_of(values)
        return before.index_select(0, index).add_(values > inside.index_select(0, index))

    return search
