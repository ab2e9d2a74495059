"""The points of a fit: sub-vectors, book by book."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

# Scores of one block (points x centers, float32) stay near a core's second-level cache.
BLOCK = 1 << 19


@dataclass(frozen=True)
class Batch:
    """Sub-vectors of some books, and their positive importance: float32, ``(books, n, dim)``."""

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


def chosen(tables: Tensor, codes: Tensor) -> Tensor:
    """What codes, ``(books, n)``, choose of tables, ``(books, k, dim)``: ``(books, n, dim)``."""
    return tables.gather(1, codes.long().unsqueeze(2).expand(-1, -1, tables.shape[2]))
