"""Running statistics of the inputs that meet a weight."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from vq_plugin.fit.output.moments import Moments
from vq_plugin.fit.parallel import deterministic_map, worker_pool
from vq_plugin.nn import Slot
from vq_plugin.nn.inputs import Arguments, first_argument
from vq_plugin.nn.slots import shown

# Inputs that calibration never saw may still occur.
_FLOOR = 1e-3

# The second moments of so many inputs take 85 MB, and a fit by them seconds to minutes.
MOST_INPUTS = 4608
_ROWS = 512


class InputSquares(nn.Module):
    """Running mean square of the inputs of a weight, input by input.

    Where inputs are uncorrelated the error of a layer's output is ``Σ_j E[x_j²]·(Δw_ij)²``, so
    that ``E[x_j²]`` is the importance of every weight that input j meets.

    Attributes:
        total: Float64 buffer, ``(groups, inputs)``: sum of squares per input, per input channel
            for a convolution; ``(rows,)`` of a table: how often each was looked up.
        count: Float64 buffer, number of samples in ``total``.
    """

    total: Tensor
    count: Tensor

    def __init__(self, slot: Slot) -> None:
        """Empty statistics for a slot whose inputs are known."""
        super().__init__()
        kind, shape = slot.kind, slot.view.shape
        self._key, self._looks_up = slot.key, kind.looks_up
        self._inputs, self._squares = kind.inputs, kind.squares or kind.inputs
        self._shape, self._groups = shape, kind.groups(slot.host)
        inputs = shape[1] if kind.squares is not None else slot.weight[0].numel()
        size = (shape[0],) if kind.looks_up else (self._groups, inputs)
        self.register_buffer("total", torch.zeros(size, dtype=torch.float64))
        self.register_buffer("count", torch.zeros((), dtype=torch.float64))

    @torch.no_grad()
    def add(self, host: nn.Module, arguments: Arguments) -> None:
        """Adds what one forward pass of ``host`` is given."""
        if self._looks_up:
            rows = first_argument(arguments).flatten()
            self.total += torch.bincount(rows, minlength=len(self.total))
            self.count += rows.numel()
            return
        assert self._squares is not None
        for inputs in self._squares(host, arguments, self._key):
            self.total += inputs.double().square().sum(1)
            self.count += inputs.shape[1]

    def observe(
        self, host: nn.Module, positional: tuple[Any, ...], keywords: Mapping[str, Any]
    ) -> None:
        """A forward pre-hook, to be registered ``with_kwargs=True``; empty batches say nothing."""
        arguments = inspect.signature(host.forward).bind(*positional, **keywords).arguments
        value = next(iter(arguments.values()), None)
        if not (isinstance(value, Tensor) and value.numel() == 0):
            self.add(host, arguments)

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


class InputMoments(InputSquares):
    """Running first and second moments of the inputs of a weight, beside their mean squares.

    The error of a layer's output is ``Σ_o Δw_o·E[x xᵀ]·Δw_oᵀ``, which takes second moments of all
    pairs of inputs. Pairs are left out for tables, whose rows are never added up, and where there
    are more than :data:`MOST_INPUTS` inputs, which a warning says.

    Attributes:
        first: Float64 buffer, ``(groups, inputs)``: sums of the inputs; empty for tables.
        second: Float32 buffer, ``(groups, inputs, inputs)``: sums of products of two; empty where
            they are left out.
        samples: Float64 buffer, number of samples in ``first`` and ``second``.
    """

    first: Tensor
    second: Tensor
    samples: Tensor

    def __init__(self, slot: Slot) -> None:
        """Empty statistics for a slot whose inputs are known."""
        super().__init__(slot)
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
        double, single = torch.float64, torch.float32
        self.register_buffer("first", torch.zeros(groups, inputs, dtype=double))
        self.register_buffer("second", torch.zeros(pairs, inputs, inputs, dtype=single))
        self.register_buffer("samples", torch.zeros((), dtype=double))

    @torch.no_grad()
    def add(self, host: nn.Module, arguments: Arguments) -> None:  # noqa: D102 - inherited
        super().add(host, arguments)
        if self._looks_up:
            return
        assert self._inputs is not None
        # A product may round differently on several threads: pieces of it, each on one.
        with worker_pool():
            for inputs in self._inputs(host, arguments, self._key):
                self.samples += inputs.shape[1]
                self.first += inputs.sum(1, dtype=torch.float64)
                # Threads of a pool do not know that gradients are off here.
                rows = partial(self._add_rows, inputs.detach())
                pairs = self.second.shape[1] if len(self.second) else 0
                deterministic_map(rows, range(0, pairs, _ROWS))

    def _add_rows(self, inputs: Tensor, start: int) -> None:
        rows = slice(start, start + _ROWS)
        self.second[:, rows] += inputs[:, :, rows].mT @ inputs

    def moments(self) -> Moments:
        """What the fit of the weight wants to know; as :meth:`importance` raises."""
        importance = self.importance()
        if not len(self.first):
            return Moments(importance)
        return Moments(
            importance,
            (self.second / self.samples.float()) if len(self.second) else None,
            (self.first / self.samples).float() if self._biased else None,
        )


def named_moments(name: str, moments: InputMoments) -> Moments:
    """``moments.moments()``; errors name the slot."""
    try:
        return moments.moments()
    except ValueError as error:
        raise ValueError(f"layer {shown(name)}: {error}") from None
