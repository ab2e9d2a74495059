"""Sub-vectors, their nearest centers and the means of what each center got."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.schemes import code_dtype
from vq_plugin.fit.parallel import deterministic_map
from vq_plugin.ops import fit as native

# Scores of one block (points x centers, float32) stay near a core's second-level cache.
BLOCK = 1 << 19
_FEWEST_POINTS = 1024
# bincount is fastest on short sub-vectors, one column at a time; index_add_ on long ones.
_SHORT = 64
# Points of one call of a native kernel: enough that calling costs nothing.
_NATIVE_POINTS = 1 << 16
# Longer sub-vectors are faster as matrix products.
_LONGEST_NATIVE = 64


@dataclass(frozen=True)
class Batch:
    """Sub-vectors of some books.

    Attributes:
        x: Float32, ``(books, n, dim)``.
        importance: Float32, ``(books, n, dim)``, positive, or ``None`` for 1 each.
    """

    x: Tensor
    importance: Tensor | None

    @property
    def n(self) -> int:
        """Points per book."""
        return self.x.shape[1]

    def __getitem__(self, index: slice | tuple[slice, slice | Tensor]) -> Batch:
        """Some books, or some points of some books."""
        importance = None if self.importance is None else self.importance[index]
        return Batch(self.x[index], importance)

    def contiguous(self) -> Batch:
        """The same points in memory one after the other."""
        importance = None if self.importance is None else self.importance.contiguous()
        return Batch(self.x.contiguous(), importance)


def native_kernels(batch: Batch, k: int) -> bool:
    """Whether native kernels fit points of this length to ``k`` centers."""
    short = batch.x.shape[2] <= _LONGEST_NATIVE
    return short and k <= native.MOST_CENTERS and native.native_fits()


def assign(batch: Batch, centers: Tensor) -> Tensor:
    """Index of the nearest center (in the weighted distance) of every point.

    Args:
        batch: The points.
        centers: Float32, ``(books, k, dim)``.

    Returns:
        Codes in the smallest integer dtype, ``(books, n)``.
    """
    codes = _empty_codes(batch, centers)

    def fill(piece: tuple[slice, slice]) -> None:
        codes[piece] = nearest(batch[piece], centers[piece[0]])[1]

    deterministic_map(fill, _pieces(batch, centers.shape[1]))
    return codes


def assign_with_error(batch: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Codes as :func:`assign` gives them and the weighted squared distances, ``(books, n)``."""
    codes = _empty_codes(batch, centers)
    distance = torch.empty(codes.shape, dtype=torch.float32)

    def fill(piece: tuple[slice, slice]) -> None:
        distance[piece], codes[piece] = nearest(batch[piece], centers[piece[0]])

    deterministic_map(fill, _pieces(batch, centers.shape[1]))
    return codes, distance


def update(batch: Batch, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Weighted means of the points of every code.

    Args:
        batch: The points.
        codes: Integers, ``(books, n)``.
        k: Centers per book.

    Returns:
        Means, float32, ``(books, k, dim)`` (0 where a code has no points), and masses of the same
        shape, or ``(books, k, 1)`` where the importance is ``None``.
    """
    if native_kernels(batch, k):
        return _native_update(batch, codes, k)
    slots = (codes.long() + torch.arange(len(codes)).unsqueeze(1) * k).flatten()
    shape = (len(codes), k, -1)
    if batch.importance is None:
        mass = torch.bincount(slots, minlength=len(codes) * k).float().reshape(shape)
        sums = _sums(batch.x, slots, len(codes) * k)
    else:
        mass = _sums(batch.importance, slots, len(codes) * k).reshape(shape)
        sums = _sums(batch.x * batch.importance, slots, len(codes) * k)
    return sums.reshape(shape) / mass.clamp_min(torch.finfo(torch.float32).tiny), mass


def _native_update(batch: Batch, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
    books, _, dim = batch.x.shape
    sums = torch.zeros(books, k, dim, dtype=torch.float64)
    mass = torch.zeros(books, k, 1 if batch.importance is None else dim, dtype=torch.float64)
    codes = codes.to(torch.uint8)

    def part(piece: tuple[slice, slice]) -> tuple[slice, tuple[Tensor, Tensor]]:
        some = batch[piece]
        return piece[0], native.sums_by_code(some.x, some.importance, codes[piece], k)

    for owners, (part_sums, part_mass) in deterministic_map(part, _pieces(batch, k)):
        sums[owners] += part_sums
        mass[owners] += part_mass
    return (sums / mass.clamp_min(torch.finfo(torch.float32).tiny)).float(), mass.float()


def _empty_codes(batch: Batch, centers: Tensor) -> Tensor:
    # Pieces write into one tensor: kept one by one, their small results would lie between the
    # large temporary ones and keep the allocator from using that memory again.
    return torch.empty(batch.x.shape[:2], dtype=code_dtype(centers.shape[1]))


def _pieces(batch: Batch, k: int) -> Iterator[tuple[slice, slice]]:
    """Books and points of one call; in torch their scores against ``k`` centers fit the cache."""
    books, n, _ = batch.x.shape
    if native_kernels(batch, k):
        book_step, point_step = max(1, _NATIVE_POINTS // n), _NATIVE_POINTS
    else:
        book_step = max(1, BLOCK // (k * min(n, _FEWEST_POINTS)))
        point_step = max(1, BLOCK // (k * min(books, book_step)))
    for book in range(0, books, book_step):
        for point in range(0, n, point_step):
            yield slice(book, book + book_step), slice(point, point + point_step)


def nearest(block: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
    """Smallest weighted squared distance and its index, each ``(books, n)``."""
    if native_kernels(block, centers.shape[1]):
        block = block.contiguous()
        codes, distance = native.nearest_centers(block.x, block.importance, centers)
        return distance, codes
    # Around the centers' mean |x|² stays small beside the differences that matter.
    middle = centers.mean(1, keepdim=True)
    x, centers = block.x - middle, centers - middle
    if block.importance is None:
        minus_square = -(centers * centers).sum(2, keepdim=True)
        scores = torch.baddbmm(minus_square, centers, x.transpose(1, 2), alpha=2)
        norm = (x * x).sum(2)
    else:
        weighted = block.importance * x
        left = torch.cat([2 * centers, -(centers * centers)], 2)
        right = torch.cat([weighted, block.importance], 2)
        scores = torch.bmm(left, right.transpose(1, 2))
        norm = (weighted * x).sum(2)
    best, index = _best(scores)
    return (norm - best).clamp_min_(0), index


def _best(scores: Tensor) -> tuple[Tensor, Tensor]:
    """Largest score over the centers, ``(books, k, n)``, and its index, each ``(books, n)``.

    Two maxima over a middle dimension and a comparison run vectorized, five times faster than
    torch's ``max`` with indices.
    """
    best = scores.amax(1, keepdim=True)
    index = torch.arange(scores.shape[1], dtype=scores.dtype).view(1, -1, 1)
    hit = torch.ge(scores, best, out=torch.empty_like(scores))
    return best.squeeze(1), hit.mul_(index).amax(1)


def _sums(values: Tensor, slots: Tensor, count: int) -> Tensor:
    """Sums of ``values``, ``(books, n, dim)``, by slot: ``(count, dim)``."""
    dim = values.shape[2]
    if dim > _SHORT:
        return torch.zeros(count, dim, dtype=torch.float32).index_add_(
            0, slots, values.reshape(-1, dim)
        )
    columns = [
        torch.bincount(slots, values[..., j].flatten().double(), count).float() for j in range(dim)
    ]
    return torch.stack(columns, 1)
