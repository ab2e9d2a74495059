"""Biases in training as whole numbers of steps, and what their bits pull them towards."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor, nn

from vq_plugin.coding.numbers import KINDS, LENGTHS, number_kinds
from vq_plugin.ops.steps import numbers_of, pull_multiples, write_multiples
from vq_plugin.training.latent_base import UNSEEN, Paying

_MOST = (1 << LENGTHS) - 1
# The largest bias is so many steps at the start, and a step of biases that are all zero so long.
_FIRST, _LEAST = 31, 2.0**-8


class LatentBiases(Paying):
    """Parameters of one dimension, of which the model has multiples of a step only.

    The step of each parameter is a power of two, as ``rest="int8"`` of :func:`vq_plugin.save` wants
    it. All of them share the table of their kinds, as in a file, and the bits of a kind pull as
    those of a code do, see :class:`vq_plugin.training.latent.LatentWeight`.

    Attributes:
        latents: Float32, of the shapes of the parameters.
        log_steps: Logarithms of the steps, before they are powers of two, ``(parameters,)``.
        pulls: Bits from each size of a number to the next, ``(128,)``.
    """

    pulls: Tensor

    def __init__(self, parameters: Sequence[nn.Parameter]) -> None:
        super().__init__()
        # Not a submodule's: the model has them, and no optimizer.
        self._biases = [list(parameters)]
        values = [value.detach().float().clone() for value in parameters]
        self.latents = nn.ParameterList(values)
        largest = [float(value.abs().max()) for value in values]
        steps = [math.log(each / _FIRST if each else _LEAST) for each in largest]
        self.log_steps = nn.Parameter(values[0].new_tensor(steps))
        self.register_buffer("pulls", values[0].new_zeros(_MOST + 1))

    def groups(self, lr: float) -> list[dict[str, object]]:
        """Latent biases and their steps."""
        return [
            {"params": list(self.latents), "lr": lr},
            {"params": [self.log_steps], "lr": 5 * lr},
        ]

    @torch.no_grad()
    def numbers(self) -> list[Tensor]:
        """Whole numbers from -127 to 127, float32, of the shapes of the parameters."""
        pairs = zip(self.latents, self._steps(), strict=True)
        return [numbers_of(value, step, _MOST) for value, step in pairs]

    @torch.no_grad()
    def count(self) -> None:
        """Counts the kinds of the numbers anew, and how their bits pull."""
        numbers = torch.cat([each.flatten() for each in self.numbers()])
        kinds = number_kinds(numbers.to("cpu", torch.int8).numpy())
        counts = np.bincount(kinds, minlength=KINDS) + UNSEEN
        # Of both signs together, and never shorter for larger numbers.
        lengths = np.append(counts[0], (counts[1::2] + counts[2::2]) / 2)
        bits = -np.log2(lengths / counts.sum())
        bits[1:] += np.arange(LENGTHS)
        between = np.diff(np.maximum.accumulate(bits))
        # From one length to the next along all numbers of the shorter one.
        widths = np.append(1, 1 << np.arange(LENGTHS - 1))
        self.pulls[: _MOST // 2 + 1] = torch.from_numpy(np.repeat(between / widths, widths))

    @torch.no_grad()
    def write(self, settled: bool) -> None:
        """Gives the model its biases, ``settled`` or not: no gradient changes numbers then."""
        every = torch.arange(-_MOST, _MOST + 1, device=self.log_steps.device)
        for bias, latent, step in zip(self._own(), self.latents, self._steps(), strict=True):
            write_multiples(bias, latent, every * step, step)

    @torch.no_grad()
    def pull(self, rate_weight: float, settled: bool) -> None:
        """Gives latent biases and steps their gradients; none once numbers are ``settled``."""
        slopes, pulls = [], self.pulls * rate_weight
        for bias, latent, step in zip(self._own(), self.latents, self._steps(), strict=True):
            found, bias.grad, latent.grad = bias.grad, None, None
            if settled:
                continue
            grad = torch.zeros_like(latent) if found is None else found.float()
            slopes.append(pull_multiples(grad, latent, pulls, step))
            latent.grad = grad
        self.log_steps.grad = torch.stack(slopes) if slopes else None

    def _own(self) -> list[nn.Parameter]:
        return self._biases[0]

    def _steps(self) -> Tensor:
        return (self.log_steps.detach() / math.log(2)).round().exp2()
