"""The kernels of the fits by the operators of the native extension."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from torch import Tensor

from vq_plugin.fit import line
from vq_plugin.fit.batch import Batch
from vq_plugin.fit.kernels.native_sweep import NativeChooser
from vq_plugin.fit.kernels.protocol import Chooser, Sweep
from vq_plugin.fit.kernels.pure_torch import TorchKernels
from vq_plugin.fit.optimal import Float64, Int64
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.ops.fit import CELL_BINS, MOST_CENTERS, operators

# Longer sub-vectors are faster as matrix products.
_LONGEST = 64
# Points of one call: enough that calling costs nothing.
_POINTS = 1 << 16
# Cells need no sorting; below this many values sorting is as fast, and exact.
_SORT_LIMIT = 1 << 18
_SAMPLE = 1 << 20
_PIECES = 16
_DENORMAL = 1e-40


class NativeKernels(TorchKernels):
    """C++, for short sub-vectors and codes of one byte; else what torch does."""

    def _piece_size(self, batch: Batch, k: int) -> tuple[int, int]:
        if not _takes(batch.x.shape[2], k):
            return super()._piece_size(batch, k)
        return max(1, _POINTS // batch.n), _POINTS

    def _nearest(self, block: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
        if not _takes(block.x.shape[2], centers.shape[1]):
            return super()._nearest(block, centers)
        block = block.contiguous()
        codes, distance = operators().nearest_centers(
            block.x, block.importance, centers.contiguous()
        )
        return codes, distance

    def means(self, batch: Batch, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """In pieces, side by side, with sums in float64."""
        books, _, dim = batch.x.shape
        if not _takes(dim, k):
            return super().means(batch, codes, k)
        sums = torch.zeros(books, k, dim, dtype=torch.float64)
        mass = torch.zeros(books, k, 1 if batch.importance is None else dim, dtype=torch.float64)
        codes = codes.to(torch.uint8)

        def add_up(piece: tuple[slice, slice]) -> tuple[slice, tuple[Tensor, Tensor]]:
            block = batch[piece]
            piece_codes = codes[piece].contiguous()
            return piece[0], operators().sums_by_code(block.x, block.importance, piece_codes, k)

        for rows, (piece_sums, piece_mass) in deterministic_map(add_up, self._pieces(batch, k)):
            sums[rows] += piece_sums
            mass[rows] += piece_mass
        return (sums / mass.clamp_min(torch.finfo(torch.float32).tiny)).float(), mass.float()

    def seeds(self, batch: Batch, mass: Tensor, first: Tensor, draws: Tensor) -> Tensor:
        """Book by book."""
        if not _takes(batch.x.shape[2], len(draws) + 1):
            return super().seeds(batch, mass, first, draws)
        seeds: Tensor
        seeds, distinct = operators().seed_centers(batch.x, mass, first, draws)
        return seeds[:, : int(distinct.max())]

    def lloyd_iterations(
        self, batch: Batch, centers: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Book by book on one thread; longer books have several threads at work on their points."""
        if batch.n > _POINTS or not _takes(batch.x.shape[2], centers.shape[1]):
            return super().lloyd_iterations(
                batch, centers, iterations=iterations, tolerance=tolerance
            )
        moved: tuple[Tensor, Tensor] = operators().lloyd(
            batch.x, batch.importance, centers.contiguous(), iterations, tolerance
        )
        return moved

    def _exchange(self, batch: Batch, codes: Tensor, k: int, sweeps: int) -> Tensor:
        if not _takes(batch.x.shape[2], k):
            return super()._exchange(batch, codes, k, sweeps)
        batch = batch.contiguous()
        better: Tensor = operators().exchange_codes(
            batch.x, batch.importance, codes.to(torch.uint8).contiguous(), k, sweeps
        )
        return better.to(codes.dtype)

    def few_centers(self, values: Tensor, k: int) -> Tensor | None:
        """In one call: NumPy takes longer for each of its own than small layers for all."""
        centers: Tensor = operators().few_centers(values.contiguous(), k)
        return centers

    def points(self, values: Tensor, importance: Tensor | None, k: int) -> line.Points:
        """Many values in cells that their bits choose: one pass, no sorting."""
        if len(values) > min(line.SORT_LIMIT, _SORT_LIMIT):
            points = _cells(values, importance)
            # Few cells may hide several values each, which k centers could reproduce.
            if len(points.x) > k:
                return points
        return super().points(values, importance, k)

    def interval_starts(self, mass: Float64, moment: Float64, k: int, *, even: bool) -> Int64:
        """Always by the recursion."""
        del even
        starts: Tensor = operators().optimal_intervals(
            torch.from_numpy(mass), torch.from_numpy(moment), k
        )
        return starts.numpy()

    def code_search(self, boundaries: Tensor) -> Callable[[Tensor], Tensor]:
        """Up to 255 boundaries."""
        if len(boundaries) >= MOST_CENTERS:
            return super().code_search(boundaries)

        def search(values: Tensor) -> Tensor:
            codes: Tensor = operators().scalar_codes(values.contiguous(), boundaries)
            return codes

        return search

    def chooser(self, sweep: Sweep) -> Chooser:
        """Strips of outputs, side by side."""
        _, _, _, k, dim = sweep.codebooks.shape
        return NativeChooser(sweep) if _takes(dim, k) else super().chooser(sweep)


def _takes(dim: int, k: int) -> bool:
    return dim <= _LONGEST and k <= MOST_CENTERS


def _cells(values: Tensor, importance: Tensor | None) -> line.Points:
    """Means and masses of cells of a line."""
    sample = values[:: max(1, len(values) // _SAMPLE)].contiguous()
    offset, shift = _cell_map(sample)
    step = max(line.SORT_LIMIT, -(-len(values) // _PIECES))

    def sums(start: int) -> Tensor:
        block = slice(start, start + step)
        mass = None if importance is None else importance[block]
        cells: Tensor = operators().scalar_cells(values[block].contiguous(), mass, offset, shift)
        return cells

    total: Float64 = sum(deterministic_map(sums, range(0, len(values), step))).numpy()  # type: ignore[union-attr]
    mass, moment = total[total[:, 0] > 0].T
    x = moment / mass
    # Denormal numbers share the cell of exact zeros.
    x[np.abs(x) < _DENORMAL] = 0
    return line.Points.build(x, mass)


def _cell_map(sample: Tensor) -> tuple[Tensor, Tensor]:
    """First cell and shift of every bin, for ``scalar_cells`` of :mod:`vq_plugin.ops.fit`.

    Every bin, the floats that share their upper 16 bits, gets one cell; those of the sample get
    more, together about ``line.CELLS``, as :func:`companded_starts` would place them.
    """
    one_each = torch.arange(CELL_BINS, dtype=torch.int32)
    whole = torch.full((CELL_BINS,), 16, dtype=torch.uint8)
    count = operators().scalar_cells(sample, None, one_each, whole)[:, 0].numpy()
    used = np.flatnonzero(count)
    # Back from the order of the bins to floats: see `ascending_bits` in csrc/fit_scalar.cpp.
    upper = np.where(used < 1 << 15, ~used, used ^ (1 << 15)).astype(np.uint32) << 16
    width = np.spacing(np.abs((upper & 0x7FFFFFFF).view(np.float32))).astype(np.float64) * (1 << 16)
    cells = count[used] ** (1 / 3) * width ** (2 / 3)
    bits = np.zeros(CELL_BINS, dtype=np.int64)
    bits[used] = np.rint(np.log2(line.CELLS * cells / cells.sum())).clip(0, 16)
    offset = np.cumsum(1 << bits) - (1 << bits)
    return torch.from_numpy(offset.astype(np.int32)), torch.from_numpy((16 - bits).astype(np.uint8))
