"""A weight in training as whole numbers of steps, and what their bits pull it towards."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from vq_plugin.codebook import CodebookWeight
from vq_plugin.nn import Slot
from vq_plugin.ops.steps import (
    count_multiples,
    numbers_of,
    pull_multiples,
    sums_of_multiples,
    write_multiples,
)
from vq_plugin.rounding import round_centers
from vq_plugin.schemes import KM, torch_code_dtype
from vq_plugin.training.latent_base import UNSEEN, Latent, entropy

# Codes run from minus this to this: what one byte numbers, with a zero in the middle.
REACH = 127
#: What such a weight may become.
WIDEST = KM(k=2 * REACH + 1, keep_zeros=True)


class LatentWeight(Latent):
    """A float weight behind one that holds multiples of a step only.

    What the model computes with is ``step · (code + shift[code])``, where ``code`` is the latent
    weight over the step, rounded. The task's gradient passes straight through the rounding (Bengio
    et al. 2013, arXiv 1308.3432). Beside it the bits of the codes pull: those of the code at hand
    are ``-log2`` of its share among the codes of the weight, which is what a coder with a table for
    the weight spends; between two codes they are interpolated, the mean over a rounding with
    uniform noise (Ballé et al. 2016, arXiv 1611.01704). A pull is thus the difference of two code
    lengths over a step: large towards a frequent zero, small between rare large codes.

    Attributes:
        latent: Float32, of the shape of the parameter.
        log_step: Logarithm of the step, a scalar.
        shift: How far centers are from multiples of the step, in steps, ``(2 · REACH + 1,)``; zeros
            until codes stay. That of the code 0 stays 0.
        pulls: Bits from each size of a code to the next, ``(REACH + 1,)``.
        bits: Bits of all codes, when last counted.
    """

    pulls: Tensor

    def __init__(self, weight: nn.Parameter, step: float) -> None:
        """``step`` is the first one, over the standard deviation of ``weight``."""
        super().__init__(weight)
        values = weight.detach().float()
        self.latent = nn.Parameter(values.clone())
        size = max(float(values.double().square().mean().sqrt()), torch.finfo(torch.float32).tiny)
        # No code is beyond the last at the start.
        first = max(step * size, float(values.abs().max()) / REACH)
        self.log_step = nn.Parameter(values.new_tensor(math.log(first)))
        self.shift = nn.Parameter(values.new_zeros(2 * REACH + 1))
        self.register_buffer("pulls", values.new_zeros(REACH + 1))

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Latent weights and the step; centers in steps, when ``lr`` has nearly gone."""
        return [
            {"params": [self.latent], "lr": lr},
            {"params": [self.log_step], "lr": 5 * lr},
            {"params": [self.shift], "lr": 100 * lr},
        ]

    @torch.no_grad()
    def codes(self) -> Tensor:
        """Whole numbers from ``-REACH`` to ``REACH``, float32, of the shape of the parameter."""
        return numbers_of(self.latent, self.log_step.exp(), REACH)

    @torch.no_grad()
    def centers(self) -> Tensor:
        """What every code stands for, from ``-REACH`` on, ``(2 · REACH + 1,)``."""
        numbers = torch.arange(-REACH, REACH + 1, device=self.shift.device)
        return (numbers + self.shift) * self.log_step.exp()

    @torch.no_grad()
    def count(self) -> None:
        """Counts the codes anew: their bits, and how these pull."""
        counts = count_multiples(self.latent, self.log_step.exp(), REACH)
        total = counts.sum()
        self.bits.copy_(entropy(counts))
        # Of both signs together, and never shorter for larger codes: single rare ones say little.
        sizes = counts[REACH:].clone()
        sizes[1:] += counts[:REACH].flip(0)
        sizes[1:] /= 2
        lengths = -((sizes + UNSEEN) / (total + UNSEEN * len(counts))).log2()
        self.pulls[:REACH] = lengths.cummax(0).values.diff().to(self.pulls)

    @torch.no_grad()
    def bits_above(self, limit: float) -> float:
        """Bits of all codes after :meth:`clear`."""
        step = self.log_step.exp()
        left = self.latent.masked_fill(self.latent.abs() < limit * step, 0)
        return float(entropy(count_multiples(left, step, REACH)))

    @torch.no_grad()
    def clear(self, limit: float) -> None:
        """See :meth:`Latent.clear`."""
        self.latent.masked_fill_(self.latent.abs() < limit * self.log_step.exp(), 0)

    def kept(self) -> tuple[Tensor, ...]:
        """Latent weights."""
        return (self.latent.detach().clone(),)

    def restore(self, kept: tuple[Tensor, ...]) -> None:
        """See :meth:`Latent.restore`."""
        self.latent.data.copy_(kept[0])

    @torch.no_grad()
    def write(self, settled: bool) -> None:
        """Gives the model the weight; centers are not shifted before codes are ``settled``."""
        (weight,) = self._weight
        write_multiples(weight, self.latent, self.centers(), self.log_step.exp())

    @torch.no_grad()
    def pull(self, rate_weight: float, settled: bool) -> None:
        """Gives the latent weight, the step and the shifts their gradients, from the weight's.

        Once codes are ``settled`` only the shifts get some.
        """
        grad = self._gradient()
        step = self.log_step.exp()
        self.latent.grad = self.log_step.grad = self.shift.grad = None
        if settled:
            sums = sums_of_multiples(grad, self.latent, step, REACH)
            sums[REACH] = 0
            self.shift.grad = sums * step
            return
        self.log_step.grad = pull_multiples(grad, self.latent, self.pulls * rate_weight, step)
        self.latent.grad = grad

    @torch.no_grad()
    def coded(self, slot: Slot) -> CodebookWeight:
        """See :meth:`Latent.coded`; centers that no code has are left out."""
        view = slot.view
        used, places = torch.unique(view.weight(self.codes()).int() + REACH, return_inverse=True)
        scheme = KM(k=len(used), keep_zeros=True)
        geometry = scheme.geometry(view.shape)
        codes = geometry.matrix(places).reshape(geometry.code_shape)
        centers = self.centers()[used].reshape(geometry.codebook_shape)
        return CodebookWeight(
            codes=codes.to(torch_code_dtype(len(used))),
            codebooks=round_centers(centers, scheme.codebook_dtype),
            scale=None,
            scheme=scheme,
            shape=view.shape,
            dtype=slot.value.dtype,
        )
