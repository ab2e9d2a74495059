"""What ``evaluate`` returns, and how sure one can be of a loss."""

from __future__ import annotations

import math
from dataclasses import dataclass
from statistics import NormalDist

import torch
from torch import Tensor

from vq_plugin.tuning.budget import LossBudget
from vq_plugin.tuning.result import Interval

# Parts of the budget that a metric may differ by from call to call.
_APART = 0.1
# Characters that show what was returned instead of a metric.
_WIDE = 80
# Of an interval that no confidence was asked for.
_LEVEL = 0.95


@dataclass(frozen=True)
class Metric:
    """A metric, and where known what every sample adds to it: float64 ``(n,)`` of that mean."""

    mean: float
    samples: Tensor | None = None


def read_metric(value: object, name: str) -> Metric:
    """What the function ``name`` returned; ValueError unless it is a number, or one per sample."""
    if isinstance(value, tuple):
        raise ValueError(
            f"{name} returned the tuple {_shown(value)}; return the metric alone, or a list or "
            "vector with one result per sample"
        )
    try:
        # A copy: the function may use one buffer for all its results.
        if torch.as_tensor(value).is_complex():  # whose other half would be lost
            raise TypeError
        if isinstance(value, Tensor):
            values = value.detach().to("cpu", torch.float64, copy=True)
        else:
            values = torch.tensor(value, dtype=torch.float64, device="cpu")
    except (TypeError, ValueError, RuntimeError, OverflowError):
        raise ValueError(
            f"{name} returned {_shown(value)}; it must return a number, or one per sample"
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
    if not torch.as_tensor(value).is_floating_point() and bool((values > 1).any()):
        raise ValueError(
            f"{name} returned whole numbers from {int(values.min())} to {int(values.max())}, which "
            "look like classes; return whether each is right, such as predictions == labels, or "
            "floats"
        )
    return Metric(float(values.mean()), values)


def _shown(value: object) -> str:
    text = " ".join(repr(value).split())
    return text if len(text) <= _WIDE else f"{text[:_WIDE]} …"


def mismatch(baseline: Metric, metric: Metric, name: str) -> str | None:
    """Why a metric cannot be compared with the float model's, or ``None``."""
    expected, count = (1 if m.samples is None else len(m.samples) for m in (baseline, metric))
    if count == expected:
        return None
    return f"{name} returned {count} results, and {expected} for the float model"


def check_repeats(budget: LossBudget, name: str, first: Metric, second: Metric) -> None:
    """Raises ValueError where a second call of the float model says something else."""
    apart = abs(budget.loss(first.mean, second.mean))
    if mismatch(first, second, name) or apart > _APART * budget.limit:
        raise ValueError(
            f"{name} of the float model is {first.mean:.6g}, and {second.mean:.6g} when it is "
            "called again: a loss cannot be told from chance; seed what is random in it, and use "
            "the same samples every time"
        )


def loss_interval(budget: LossBudget, baseline: Metric, metric: Metric) -> Interval | None:
    """Two-sided interval of the loss at the budget's confidence, else 95 %; or ``None``."""
    if baseline.samples is None or metric.samples is None:
        return None
    level = budget.confidence or _LEVEL
    loss, error, _ = _loss_and_error(budget, baseline.samples, metric.samples)
    reach = NormalDist().inv_cdf((1 + level) / 2) * error
    return loss - reach, loss + reach


def loss_bound(budget: LossBudget, baseline: Tensor, samples: Tensor) -> float:
    """One-sided upper bound of the loss at the budget's confidence, from paired samples.

    Where almost all samples that differ are losses, their number is skewed as a Poisson variable
    is, and the normal quantile alone covers 0.90 instead of 0.95. The correction is that of Johnson
    1978, "Modified t tests", with the largest skewness that samples of this reach can have.
    """
    return expected_bound(budget, baseline, samples, len(samples))[0]


def expected_bound(
    budget: LossBudget, baseline: Tensor, samples: Tensor, count: int
) -> tuple[float, float]:
    """The :func:`loss_bound` of ``count`` others, if they are like these, and its error."""
    assert budget.confidence is not None
    loss, error, step = _loss_and_error(budget, baseline, samples)
    fewer = len(samples) / count
    quantile = NormalDist().inv_cdf(budget.confidence)
    bound = loss + quantile * error * math.sqrt(fewer) + step * fewer * (1 + 2 * quantile**2) / 6
    return bound, error * math.sqrt(1 + fewer)


def p_value(budget: LossBudget, baseline: Tensor, samples: Tensor) -> float:
    """Probability of results as good as these if the loss is in truth just over the budget.

    One minus the largest confidence at which :func:`loss_bound` is within the limit.
    """
    loss, error, step = _loss_and_error(budget, baseline, samples)
    room = budget.limit - loss - step / 6
    if room <= 0:
        return 1.0
    # The root of step / 3 * q^2 + error * q = room.
    quantile = 2 * room / (error + math.sqrt(error**2 + 4 / 3 * step * room))
    return 1 - NormalDist().cdf(quantile)


def _loss_and_error(
    budget: LossBudget, baseline: Tensor, samples: Tensor
) -> tuple[float, float, float]:
    """The loss, its standard error and how much of it the worst sample can make.

    Samples are paired, so most of their variance cancels. Two imagined ones, one won and one lost
    by as much as any other, keep the error honest where few differ; where none does, by the range
    of the metric (Bonett & Price 2012, "Adjusted Wald confidence interval for a difference of
    binomial proportions based on paired data").
    """
    loss = budget.loss(float(baseline.mean()), float(samples.mean()))
    difference = baseline - samples if budget.higher_is_better else samples - baseline
    low, high = torch.aminmax(torch.cat([baseline, samples]))
    # All right, and the metric may be right or wrong: nothing shows that it can be wrong.
    reach = float(difference.abs().max()) or float(high - low) or 1.0
    size = 1.0
    if budget.relative is not None:
        # The ratio's linearization: its baseline is an estimate too.
        size = abs(float(baseline.mean()))
        difference = difference - loss * torch.sign(baseline.mean()) * baseline
    difference = torch.cat([difference, difference.new_tensor([reach, -reach])])
    error = float(difference.std()) / math.sqrt(len(difference)) / size
    return loss, error, reach / len(baseline) / size
