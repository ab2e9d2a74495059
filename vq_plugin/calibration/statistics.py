"""Running statistics of the inputs that meet a weight."""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from vq_plugin.calibration.sample import most_rows, sample_of
from vq_plugin.calibration.shared import once
from vq_plugin.fit.output.moments import Moments, Samples
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.nn import Slot
from vq_plugin.nn.inputs import Arguments, Call, Patches, first_argument
from vq_plugin.nn.slots import shown

# Inputs that calibration never saw may still occur.
_FLOOR = 1e-3

# The second moments of so many inputs take 85 MB, and a fit by them seconds to minutes.
MOST_INPUTS = 4608
# Of so many inputs, samples are kept while there are so many times fewer of them than inputs: a fit
# by them takes less than one by their square.
_MANY_INPUTS = 1024
_FEWER = 4
# Numbers in the rows that are read at a time, and rows of second moments, at most, that one thread
# sums up.
_PIECE = 1 << 22
_ROWS = 128


class _Form(NamedTuple):
    """How inputs meet a weight: groups of them, its rows looked up, squares kept by channel."""

    groups: int
    looks_up: bool
    by_channel: bool


def _of_slot(slot: Slot) -> _Form:
    kind = slot.kind
    return _Form(kind.groups(slot.host), kind.looks_up, kind.squares is not None)


def _of_call(call: Call) -> _Form:
    return _Form(call.groups, call.looked_up is not None, call.squares is not None)


class InputSquares(nn.Module):
    """Running mean square of the inputs of a weight, input by input.

    Where inputs are uncorrelated the error of a layer's output is ``Σ_j E[x_j²]·(Δw_ij)²``, so
    that ``E[x_j²]`` is the importance of every weight that input j meets. Of very many samples
    some stand for all, see :mod:`vq_plugin.calibration.sample`.

    Attributes:
        total: Float64 buffer, ``(groups, inputs)``: sum of squares per input, per input channel
            for a convolution; ``(rows,)`` of a table: how often each was looked up.
        count: Float64 buffer, number of samples in ``total``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, slot: Slot, call: Call | None = None) -> None:
        """Empty statistics for a slot whose inputs are known, or that ``call`` tells."""
        super().__init__()
        kind, shape = slot.kind, slot.view.shape
        self._key, self._shape = slot.key, shape
        self._inputs, self._squares = kind.inputs, kind.squares or kind.inputs
        self._form = _of_call(call) if call is not None else _of_slot(slot)
        self._groups, self._looks_up, self._by_channel = self._form
        inputs = shape[1] if self._by_channel else slot.weight[0].numel()
        size = (shape[0],) if self._looks_up else (self._groups, inputs)
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, host: nn.Module, arguments: Arguments) -> None:
        """Adds what one forward pass of ``host`` is given."""
        if self._looks_up:
            self._add_looked_up(first_argument(arguments))
            return
        assert self._squares is not None
        self._add_squares(self._squares(host, arguments, self._key))

    @torch.no_grad()
    def add_call(self, call: Call) -> None:
        """Adds what one call of a torch function gives the weight."""
        if call.looked_up is not None:
            self._add_looked_up(call.looked_up)
            return
        squares = call.squares or call.inputs
        assert squares is not None
        self._add_squares(squares())

    def takes(self, call: Call) -> bool:
        """Whether inputs meet the weight in a call as they did so far."""
        return self._form == _of_call(call)

    def _add_looked_up(self, rows: Tensor) -> None:
        self.total += torch.bincount(rows.flatten(), minlength=len(self.total))
        self.count += rows.numel()

    def _add_squares(self, pieces: Iterator[Tensor | Patches]) -> None:
        for piece in pieces:
            if isinstance(piece, Patches) and piece.plain:
                # To sum all of them up takes less than to find a sample's rows.
                self.total += piece.squares()
            else:
                self._check(piece)
                for rows, counts in read_rows(piece, int(self.count)):
                    self._add_rows(rows, counts)
            self.count += piece.shape[1]

    def _add_rows(self, rows: Tensor, counts: float) -> None:
        self.total += counts * rows.square().sum(1).double()

    def _check(self, piece: Tensor | Patches) -> None:
        # What a sample leaves out must not hide it.
        if not _finite(piece):
            self.total += torch.nan

    def importance(self) -> Tensor:
        """What every element counts; broadcasts to the weight. ``ValueError`` on NaN or none."""
        if self.count == 0:
            raise ValueError(
                "calibration never ran it: feed inputs that reach it, or leave it out where its "
                "owner only reads its weight"
            )
        mean = self.total / self.count
        if not bool(mean.isfinite().all()):
            raise ValueError("calibration gave it NaN or infinite inputs")
        if not bool((mean > 0).any()):
            return torch.ones(1, device=mean.device)
        mean = (mean + _FLOOR * mean.mean()).float()
        if self._looks_up:
            return mean.reshape(-1, *[1] * (len(self._shape) - 1))
        # Channels count alike at all positions of a kernel.
        if mean.shape[1] == self._shape[1]:
            mean = mean.reshape(*mean.shape, *[1] * (len(self._shape) - 2))
        else:
            mean = mean.reshape(self._groups, *self._shape[1:])
        if self._groups == 1:
            return mean[0]
        return mean.repeat_interleave(self._shape[0] // self._groups, 0)


class _Sums(NamedTuple):
    """What a piece of inputs adds: products of pairs in blocks, or the inputs themselves."""

    squares: Tensor
    first: Tensor
    products: list[Tensor]
    kept: Tensor | None


class InputMoments(InputSquares):
    """Running first and second moments of the inputs of a weight, beside their mean squares.

    The error of a layer's output is ``Σ_o Δw_o·E[x xᵀ]·Δw_oᵀ``, which takes second moments of all
    pairs of inputs. Pairs are left out for tables, whose rows are never added up, and where there
    are more than :data:`MOST_INPUTS` inputs, which a warning says.

    Attributes:
        first: Float64 buffer, ``(groups, inputs)``: sums of the inputs; empty for tables.
        second: Float32 buffer, ``(groups, inputs, inputs)``: sums of products of two, in blocks on
            and right of the diagonal; the samples themselves, in its first rows, while they are
            few and inputs many; empty where pairs are left out.
        samples: Float64 buffer, number of samples in ``first`` and ``second``.
    """

    first: Tensor
    second: Tensor
    samples: Tensor

    def __init__(self, slot: Slot, call: Call | None = None) -> None:
        """Empty statistics for a slot whose inputs are known, or that ``call`` tells."""
        super().__init__(slot, call)
        inputs = 0 if self._looks_up else slot.weight[0].numel()
        groups = 0 if self._looks_up else self._groups
        pairs = groups
        if inputs > MOST_INPUTS:
            pairs = 0
            warnings.warn(
                f"layer {slot.name!r} has {inputs} inputs, more than {MOST_INPUTS}: its fit goes "
                "by their mean squares, not by how they go together",
                stacklevel=2,
            )
        self._biased = slot.bias is not None
        if call is not None and slot.bias is not None:
            self._biased = call.bias is getattr(slot.module, slot.bias)
        double, single = torch.float64, torch.float32
        self.register_buffer("first", torch.zeros(groups, inputs, dtype=double))
        self.register_buffer("second", torch.zeros(pairs, inputs, inputs, dtype=single))
        self.register_buffer("samples", torch.zeros((), dtype=double))

    @torch.no_grad()
    def add(self, host: nn.Module, arguments: Arguments) -> None:  # noqa: D102 - inherited
        if self._looks_up or self._by_channel:
            super().add(host, arguments)
        if not self._looks_up:
            assert self._inputs is not None
            self._add_pairs(self._inputs(host, arguments, self._key))

    @torch.no_grad()
    def add_call(self, call: Call) -> None:  # noqa: D102 - inherited
        if self._looks_up or self._by_channel:
            super().add_call(call)
        if call.inputs is not None:
            self._add_pairs(call.inputs())

    def _add_pairs(self, pieces: Iterator[Tensor | Patches]) -> None:
        # A product may round differently on several threads: pieces of it, each on one.
        with worker_pool():
            for piece in pieces:
                self._add_piece(piece)

    def _add_piece(self, piece: Tensor | Patches) -> None:
        before, count = int(self.samples), piece.shape[1]
        few = self._few(before + count)
        if self._few(before) and not few:
            kept = self.second[:, :before].clone()
            self.second[:, :before] = 0
            self._add_products(self._products(kept))
        pairs = len(self.second) > 0
        kind = (before, few, pairs, self._by_channel)
        sums = once(piece, kind, lambda: self._sums(piece, before, few))
        if not self._by_channel:
            # The same inputs: their squares are not read on their own.
            self.total += sums.squares
            self.count += count
        if self._biased:
            self.first += sums.first
        if sums.kept is not None:
            self.second[:, before : before + count] = sums.kept
        self._add_products(sums.products)
        self.samples += count

    def _sums(self, piece: Tensor | Patches, before: int, few: bool) -> _Sums:
        squares = torch.zeros_like(self.first)
        if not (self._by_channel or _finite(piece)):
            # What a sample leaves out must not hide it.
            squares += torch.nan
        first, products, kept = torch.zeros_like(self.first), list[Tensor](), list[Tensor]()
        for some, counts in read_rows(piece, before):
            # Threads of a pool do not know that gradients are off here.
            rows = some.detach()
            if not self._by_channel:
                squares += counts * rows.square().sum(1).double()
            first += counts * rows.sum(1)
            if few:
                kept.append(rows)
            elif len(self.second):
                products = self._products(rows, counts, products)
        return _Sums(squares, first, products, torch.cat(kept, 1) if kept else None)

    def _few(self, samples: int) -> bool:
        """Whether so many samples are kept as they are."""
        inputs = self.second.shape[1] if len(self.second) else 0
        return inputs >= _MANY_INPUTS and _FEWER * samples <= inputs

    def _products(
        self, rows: Tensor, counts: float = 1.0, before: Sequence[Tensor] = ()
    ) -> list[Tensor]:
        """Products of all pairs, in blocks, beside those of other rows."""
        blocks = _blocks(rows.shape[2])

        def product(at: int) -> Tensor:
            some = blocks[at]
            found = rows[:, :, some].mT @ rows[:, :, some.start :]
            return before[at].add_(found, alpha=counts) if before else found.mul_(counts)

        return deterministic_map(product, range(len(blocks)))

    def _add_products(self, products: Sequence[Tensor]) -> None:
        blocks = _blocks(self.second.shape[1])

        def add(at: int) -> None:
            some = blocks[at]
            self.second[:, some, some.start :] += products[at]

        # None, where samples are kept or pairs left out.
        deterministic_map(add, range(len(products)))

    def moments(self) -> Moments:
        """What the fit of the weight wants to know; as :meth:`importance` raises."""
        importance = self.importance()
        if not len(self.first):
            return Moments(importance)
        return Moments(
            importance,
            self._pairs() if len(self.second) else None,
            (self.first / self.samples).float() if self._biased else None,
        )

    def _pairs(self) -> Tensor | Samples:
        if self._few(int(self.samples)):
            return Samples(self.second[:, : int(self.samples)].clone())
        second = self.second / self.samples.float()
        # The blocks left of the diagonal are those right of it, turned.
        for rows in _blocks(second.shape[1]):
            second[:, rows.stop :, rows] = second[:, rows, rows.stop :].mT
        return second


def _blocks(inputs: int) -> list[slice]:
    """Rows of second moments that are summed at a time: of about equal number."""
    count = -(-inputs // _ROWS)
    ends = [inputs * at // max(count, 1) for at in range(count + 1)]
    return [slice(start, stop) for start, stop in itertools.pairwise(ends)]


def read_rows(piece: Tensor | Patches, before: int) -> Iterator[tuple[Tensor, float]]:
    """Rows of ``(groups, samples, inputs)``, and how many each stands for; ``before`` were read."""
    groups, total, inputs = piece.shape
    if not total:
        return
    index = sample_of(total, before, most_rows(groups, inputs))
    step = max(1, _PIECE // max(1, groups * inputs))
    if index is None and isinstance(piece, Tensor):
        for some in torch.split(piece, step, 1):
            yield some.float(), 1.0
        return
    counts = 1.0 if index is None else total / len(index)
    index = torch.arange(total) if index is None else index
    for at in torch.split(index.to(_values(piece).device), step):
        yield piece.rows(at) if isinstance(piece, Patches) else piece[:, at].float(), counts


def _finite(piece: Tensor | Patches) -> bool:
    values = _values(piece)
    return not values.numel() or bool(torch.stack(torch.aminmax(values)).isfinite().all())


def _values(piece: Tensor | Patches) -> Tensor:
    return piece.value if isinstance(piece, Patches) else piece


def named_moments(name: str, moments: InputMoments) -> Moments:
    """``moments.moments()``; errors name the slot."""
    try:
        return moments.moments()
    except ValueError as error:
        raise ValueError(f"layer {shown(name)}: {error}") from None
