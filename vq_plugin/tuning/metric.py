"""What ``evaluate`` returns, and how sure one can be of a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.result import Interval

# Of an interval that no confidence was asked for.
_LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A metric, and what every sample adds to it where that is known.

    Attributes:
        mean: The metric.
        samples: Float64 ``(n,)`` with mean ``mean``, or ``None``.
    """

    mean: float
    samples: Tensor | None = None


def read_metric(value: object, name: str) -> Metric:
    """What a user's function returned, as a metric.

    Args:
        value: A finite number, or one result per sample: a 1-D tensor, array or sequence of bools
            or floats.
        name: The function, for messages.

    Raises:
        ValueError: If it is anything else.
    """
    try:
        values = torch.as_tensor(value).detach().cpu().double()
    except (TypeError, ValueError, RuntimeError):
        raise ValueError(
            f"{name} returned {value!r}; it must return a number, or one per sample"
        ) from None
    if values.dim() > 1 or values.numel() == 0:
        raise ValueError(
            f"{name} returned values of shape {tuple(values.shape)}; it must return a number, or "
            "one per sample as a vector"
        )
    if not bool(values.isfinite().all()):
        what = f"{float(values)}" if values.dim() == 0 else "NaN or infinite results"
        raise ValueError(f"{name} returned {what}")
    if values.numel() == 1:
        return Metric(float(values))
    return Metric(float(values.mean()), values)


def loss_interval(budget: LossBudget, baseline: Metric, metric: Metric) -> Interval | None:
    """Two-sided interval of the loss, in the budget's unit.

    Args:
        budget: Says what a loss is; its confidence is the level, 95 % if it has none.
        baseline: The float model's metric.
        metric: The compressed model's, on the same samples.

    Returns:
        Ends of the interval, or ``None`` where there are no samples.
    """
    if baseline.samples is None or metric.samples is None:
        return None
    level = budget.confidence or _LEVEL
    loss, error = _loss_and_error(budget, baseline.samples, metric.samples)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return loss - reach, loss + reach


def loss_bound(budget: LossBudget, baseline: Tensor, samples: Tensor) -> float:
    """One-sided upper bound of the loss at the budget's confidence, from paired samples."""
    assert budget.confidence is not None
    loss, error = _loss_and_error(budget, baseline, samples)
    return loss + NormalDist().inv_cdf(budget.confidence) * error


def _loss_and_error(budget: LossBudget, baseline: Tensor, samples: Tensor) -> tuple[float, float]:
    """The loss and its standard error; samples are paired, so most of their variance cancels.

    Two imagined samples, one won and one lost by the range of the metric, keep the error honest
    where few samples or none differ (Bonett & Price 2012, "Adjusted Wald confidence interval for
    a difference of binomial proportions based on paired data").
    """
    loss = budget.loss(float(baseline.mean()), float(samples.mean()))
    difference = baseline - samples if budget.higher_is_better else samples - baseline
    size = 1.0
    if budget.relative is not None:
        # The ratio's linearization: its baseline is an estimate too.
        size = abs(float(baseline.mean()))
        difference = difference - loss * torch.sign(baseline.mean()) * baseline
    low, high = torch.aminmax(torch.cat([baseline, samples]))
    reach = (high - low).reshape(1)
    difference = torch.cat([difference, reach, -reach])
    return loss, float(difference.std()) / math.sqrt(len(difference)) / size
