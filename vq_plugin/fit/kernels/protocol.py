"""What the fits ask of their kernels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from vq_plugin.fit.batch import Batch
from vq_plugin.fit.line import Points
from vq_plugin.fit.optimal import Float64, Int64


@dataclass(frozen=True)
class Sweep:
    """What all steps of one pass over a layer's inputs share; see also ``output.objective``."""

    codes: Tensor
    codebooks: Tensor
    shape: tuple[int, int, int]
    mass: Tensor
    along_out: bool
    row_group: int | None
    zeros: Tensor | None


@dataclass(frozen=True)
class SweepBlock:
    """Some steps of a sweep, for some outputs.

    ``inner`` says how the error of an input (row) counts at the others,
    ``(groups, inputs, inputs)``; ``pull`` what the errors so far ask of each, and ``base`` what
    stands there now, ``(groups, inputs, outputs)``; ``inverse`` has the blocks on the diagonal,
    ``factor`` the lower factor of every step's metric, ``(groups, steps, dim, dim)``.
    """

    inner: Tensor
    pull: Tensor
    base: Tensor
    inverse: Tensor
    factor: Tensor


class Chooser(Protocol):
    """Chooses the codes, ``(stages, rows, subspaces)``, ``strip`` outputs at a time."""

    strip: int

    @property
    def codes(self) -> Tensor:
        """What was chosen so far, and elsewhere what was there."""

    def choose(self, steps: Tensor, outputs: slice, block: SweepBlock) -> Tensor:
        """Chooses the codes of some steps; returns ``base`` less the centers chosen."""


class Kernels(Protocol):
    """The computations of the fits, for any shape.

    Results do not depend on the number of threads. Between two implementations they differ by
    rounding: a point between two centers may go to the other one.

    Codes are integers, ``(books, n)``, those that are returned of the smallest dtype; ``centers``
    are float32, ``(books, k, dim)``, and ``k`` is their number.
    """

    def assign(self, batch: Batch, centers: Tensor) -> Tensor:
        """Codes of the nearest center (in the weighted distance) of every point."""

    def assign_with_error(self, batch: Batch, centers: Tensor) -> tuple[Tensor, Tensor]:
        """The same, and the weighted squared distances, ``(books, n)``."""

    def means(self, batch: Batch, codes: Tensor, k: int) -> tuple[Tensor, Tensor]:
        """Weighted means of the points of every code, 0 where there are none, and their masses.

        Masses are of the shape of the means, or ``(books, k, 1)`` without importance.
        """

    def seeds(self, batch: Batch, mass: Tensor, first: Tensor, draws: Tensor) -> Tensor:
        """Greedy k-means++: see :func:`vq_plugin.fit.vector.plus_plus`, which draws.

        Points count by ``mass``, ``(books, n)``. Of the draws, float64 in [0, 1), those of
        ``first``, ``(books, 1)``, choose the first centers and those of ``draws``,
        ``(k - 1, books, trials)``, the candidates for the others.
        """

    def lloyd_iterations(
        self, batch: Batch, centers: Tensor, *, iterations: int, tolerance: float
    ) -> tuple[Tensor, Tensor]:
        """Lloyd's iterations in every book until its error falls by less than ``tolerance`` of it.

        Returns centers, of which none is empty where a point lies apart from its center, and the
        codes of their points.
        """

    def exchange(self, batch: Batch, codes: Tensor, k: int, *, sweeps: int) -> Tensor:
        """At most ``sweeps`` of Hartigan's exchange: see :func:`vq_plugin.fit.exchange.improve`."""

    def few_centers(self, values: Tensor, k: int) -> Tensor | None:
        """Optimal centers of single weights, ascending, float64; ``None``: no kernel of its own."""

    def points(self, values: Tensor, importance: Tensor | None, k: int) -> Points:
        """Single weights as points, or means of many; what ``k`` centers could hold stays apart."""

    def interval_starts(self, mass: Float64, moment: Float64, k: int, *, even: bool) -> Int64:
        """``optimal_starts``; ``even`` says that points are about as dense as centers already."""

    def code_search(self, boundaries: Tensor) -> Callable[[Tensor], Tensor]:
        """A function that counts the boundaries, float32 and ascending, below each value."""

    def chooser(self, sweep: Sweep) -> Chooser:
        """What chooses the codes of a sweep."""
