"""What the inputs of a layer are like, as far as its fit wants to know."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from vq_plugin.fit.output.metric import Dense, LowRank, Metric, row_errors


@dataclass(frozen=True)
class Samples:
    """``E[x xᵀ]`` of few samples as they are: ``rows``, float32, ``(groups, samples, inputs)``."""

    rows: Tensor


# What an output counts of which nothing is felt.
_LEAST = 1e-8


@dataclass(frozen=True)
class Moments:
    """Moments of a layer's input, gathered from unlabelled data.

    Inputs are those of the 2-D view of the weight: features (Linear), or the patches under the
    kernel, group by group (ConvNd), ``in/groups · kernel`` numbers each.

    Attributes:
        importance: ``E[x²]`` of the input that every weight meets; broadcasts to the weight.
        second: ``E[x xᵀ]``, float32, ``(groups, inputs, inputs)``, or the samples themselves
            where they are few; ``None`` where it is not known: then the fit goes by
            ``importance``. Of a table, what errors of two columns of a row do together.
        mean: ``E[x]``, float32, ``(groups, inputs)``, where the layer has a bias, which takes up
            the mean of the output's error; ``None`` where it has none.
        outputs: What a squared error of each output does to the outputs of the model, float64
            ``(out,)``, up to a factor; ``None`` where that is not known: then all count alike.
        together: What is believed of what errors of two outputs do together, float32
            ``(out, out)``, with ``outputs`` on its diagonal; ``None`` where that is nothing.
        doubt: The part of what is off its diagonal that does not count when a fit is judged.
    """

    importance: Tensor
    second: Tensor | Samples | None = None
    mean: Tensor | None = None
    outputs: Tensor | None = None
    together: Tensor | None = None
    doubt: float = 0.0

    def output_mass(self, count: int) -> Tensor:
        """How much the error of each of ``count`` outputs counts: float32 ``(count,)``, at most 1.

        What nothing is felt of counts a little.
        """
        if self.outputs is None or not bool((self.outputs > 0).any()):
            return torch.ones(count, dtype=torch.float32, device="cpu")
        each = self.outputs.cpu().double()
        return (each / each.max()).clamp_min(_LEAST).float()

    def output_error(self, change: Tensor) -> float:
        """The mean squared change of the layer's outputs, summed over outputs.

        Args:
            change: What is added to the weight, of its shape.

        Returns:
            ``Σ_o E[(Δw_o·x)²]``, after the bias took up its share; where ``second`` is not
            known, ``Σ_ij E[x_j²]·Δw_ij²``.
        """
        return float(self.row_errors(change).sum())

    def row_errors(self, change: Tensor) -> Tensor:
        """:meth:`output_error`, output by output: float64 ``(out,)``."""
        if self.second is None:
            squares = change.detach().cpu().float().square() * self.importance.cpu()
            return squares.flatten(1).sum(1, dtype=torch.float64)
        return row_errors(self.centered(), change)

    def row_inputs(self, shape: tuple[int, ...]) -> Tensor:
        """Squares of the inputs of each output of a weight of this shape: float64 ``(out,)``.

        Summed over inputs; what an error of 1 of each weight does to the output, squared, where
        inputs do not go together.
        """
        if self.second is None:
            return self.importance.cpu().expand(shape).flatten(1).sum(1, dtype=torch.float64)
        traces = self.centered().diagonal.sum(1, dtype=torch.float64)
        return traces.repeat_interleave(shape[0] // len(traces))

    def raw(self) -> Metric:
        """``second``, on the CPU."""
        assert self.second is not None
        if isinstance(self.second, Samples):
            return _of_samples(self.second.rows.cpu())
        return Dense(self.second.cpu())

    def centered(self) -> Metric:
        """``second``, less the square of the mean where a bias takes it up; on the CPU."""
        assert self.second is not None
        if self.mean is None:
            return self.raw()
        mean = self.mean.cpu()
        if isinstance(self.second, Samples):
            return _of_samples(self.second.rows.cpu() - mean.unsqueeze(1))
        return Dense(self.second.cpu() - mean.unsqueeze(2) * mean.unsqueeze(1))

    def bias_shift(self, change: Tensor) -> Tensor | None:
        """What a layer's bias takes up when ``change`` is added to its weight: ``−Δw·E[x]``.

        Args:
            change: What is added to the weight, of its shape.

        Returns:
            What to add to the bias, float32, ``(out,)``, or ``None`` without ``mean``.
        """
        if self.mean is None:
            return None
        mean = self.mean.cpu().double().unsqueeze(2)
        rows = change.detach().cpu().double().reshape(len(mean), -1, mean.shape[1])
        return -(rows @ mean).flatten().float()


def _of_samples(rows: Tensor) -> LowRank:
    groups, samples, inputs = rows.shape
    own = torch.zeros(groups, inputs, dtype=rows.dtype, device=rows.device)
    return LowRank(own, rows / samples**0.5)
