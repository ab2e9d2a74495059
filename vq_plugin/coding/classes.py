"""Classes of rows and of subspaces whose codes are about as often not the commonest one.

Pruning leaves some rows and subspaces nearly empty and others dense. The class of its row and that
of its subspace then say how probable a code is.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np
from numpy.typing import NDArray

# Numbers of classes that are tried, of rows and of subspaces.
_NUMBERS = (2, 3, 4, 6)
# Counts of so many codes at a time.
_RUN = 1 << 20


@dataclass(frozen=True)
class Classes:
    """The class of every row and every subspace.

    Attributes:
        of_rows: Integers from 0 on, ``(stages * rows,)``.
        of_subspaces: Integers from 0 on, ``(subspaces,)``; the same in all stages.
        numbers: How many classes of rows there are, and how many of subspaces.
    """

    of_rows: NDArray[Any]
    of_subspaces: NDArray[Any]
    numbers: tuple[int, int]

    def split(self, codes: NDArray[Any]) -> list[NDArray[Any]]:
        """Codes, ``(stages, rows, subspaces)``, pair by pair of classes, that of rows first."""
        rows, subspaces = self._orders()
        ordered = codes.reshape(len(rows), -1)[rows].take(subspaces, 1)
        return [ordered[block].reshape(-1) for block in self._blocks()]

    def join(self, groups: list[NDArray[Any]], shape: tuple[int, ...]) -> NDArray[Any]:
        """Undoes :meth:`split`."""
        rows, subspaces = self._orders()
        ordered = np.empty((len(rows), len(subspaces)), groups[0].dtype)
        for block, group in zip(self._blocks(), groups, strict=True):
            ordered[block] = group.reshape(ordered[block].shape)
        codes = np.empty_like(ordered)
        codes[rows] = ordered.take(subspaces.argsort(), 1)
        return codes.reshape(shape)

    def counts(self) -> list[NDArray[np.int64]]:
        """Rows of every class, ``(1, classes)``, and subspaces."""
        lines = zip((self.of_rows, self.of_subspaces), self.numbers, strict=True)
        return [np.bincount(line, minlength=number)[None] for line, number in lines]

    def sizes(self) -> list[int]:
        """How many codes every pair of classes has."""
        rows, subspaces = self.counts()
        sizes: list[int] = (rows.T * subspaces).reshape(-1).tolist()
        return sizes

    def _orders(self) -> tuple[NDArray[np.intp], NDArray[np.intp]]:
        return self.of_rows.argsort(kind="stable"), self.of_subspaces.argsort(kind="stable")

    def _blocks(self) -> Iterator[tuple[slice, slice]]:
        """Where the codes of every pair are once rows and subspaces are in the order of classes."""
        rows, subspaces = (
            [slice(end - count, end) for count, end in zip(counts, counts.cumsum(), strict=True)]
            for counts in (side[0] for side in self.counts())
        )
        return product(rows, subspaces)


def by_class(
    array: NDArray[Any], by_row: NDArray[np.int64], by_subspace: NDArray[np.int64], most: int
) -> Iterator[tuple[Classes, NDArray[np.int64]]]:
    """Ways to make at most ``most`` pairs of classes, each with its counts, ``(pairs, k)``.

    The classes of rows are intervals of one length of the square root of how many of a row's codes
    are not the commonest of the stage; so are those of subspaces.

    ``array`` has the codes, ``(stages, rows, subspaces)``; counts of the codes of every row are
    ``(stages * rows, k)``, of every subspace of every stage ``(stages * subspaces, k)``.
    """
    stages, rows, subspaces = array.shape
    k = by_row.shape[1]
    commonest = by_row.reshape(stages, rows, k).sum(1).argmax(1)
    at = np.arange(stages)
    common = by_row.reshape(stages, rows, k)[at, :, commonest]
    filled_rows = (subspaces - common).reshape(-1)
    filled_subspaces = (rows - by_subspace.reshape(stages, subspaces, k)[at, :, commonest]).sum(0)
    row_cuts, subspace_cuts = _all_cuts(filled_rows), _all_cuts(filled_subspaces)
    pairs = [
        (a, b) for a, b in product(row_cuts, subspace_cuts) if (len(a) + 1) * (len(b) + 1) <= most
    ]
    if not pairs:
        return
    # Counts of all numbers of classes are sums of those between all cuts.
    fine_rows = np.unique(np.concatenate(row_cuts))
    fine_subspaces = np.unique(np.concatenate(subspace_cuts))
    fine = _counts(
        array.reshape(-1, subspaces),
        np.searchsorted(fine_rows, filled_rows, side="right"),
        np.searchsorted(fine_subspaces, filled_subspaces, side="right"),
        (len(fine_rows) + 1, len(fine_subspaces) + 1, k),
    )
    for a, b in pairs:
        first = np.add.reduceat(fine, [0, *(np.searchsorted(fine_rows, a) + 1)], 0)
        counts = np.add.reduceat(first, [0, *(np.searchsorted(fine_subspaces, b) + 1)], 1)
        classes = Classes(
            np.searchsorted(a, filled_rows, side="right").astype(np.uint8),
            np.searchsorted(b, filled_subspaces, side="right").astype(np.uint8),
            (len(a) + 1, len(b) + 1),
        )
        yield classes, counts.reshape(-1, k)


def _all_cuts(filled: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    """The least of every class but the first, for some numbers of classes; none is empty."""
    values = np.unique(filled)
    roots = np.sqrt(values)
    found = {}
    for number in _NUMBERS:
        ends = roots[0] + (roots[-1] - roots[0]) * np.arange(1, number) / number
        first = np.unique(np.searchsorted(roots, ends))
        found[len(first)] = values[first]
    return [cuts for cuts in found.values() if len(values) > 1]


def _counts(
    lines: NDArray[Any], rows: NDArray[np.intp], subspaces: NDArray[np.intp], shape: tuple[int, ...]
) -> NDArray[np.int64]:
    _, columns, k = shape
    counts = np.zeros(shape, np.int64)
    step = max(1, _RUN // lines.shape[1])
    order = rows.argsort(kind="stable")
    ends = np.bincount(rows, minlength=shape[0]).cumsum()
    place = (subspaces * k).astype(np.int32)
    for row, (start, end) in enumerate(zip([0, *ends], ends, strict=False)):
        for first in range(start, end, step):
            found = lines[order[first : min(end, first + step)]] + place
            counts[row] += np.bincount(found.reshape(-1), minlength=columns * k).reshape(-1, k)
    return counts
