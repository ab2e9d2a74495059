"""What evaluate may return, and whether the bounds of a loss are worth their name."""

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from vq_plugin import LossBudget
from vq_plugin.tuning.metric import Metric, loss_bound, loss_interval, p_value, read_metric

SURE = LossBudget(absolute=0.01, confidence=0.95)


@pytest.mark.parametrize(
    ("value", "mean"),
    [
        (0.1, 0.1),
        (3, 3.0),
        (True, 1.0),
        (np.float64(0.1), 0.1),
        (np.array(0.1), 0.1),
        (torch.tensor(0.5), 0.5),
        (torch.tensor(0.5, requires_grad=True), 0.5),
        (torch.tensor([0.5]), 0.5),
        ([0.1], 0.1),
        (-2, -2.0),
    ],
)
def test_a_number_is_the_metric_itself(value: object, mean: float) -> None:
    assert read_metric(value, "evaluate") == Metric(mean)


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_number_keeps_every_digit(value: float) -> None:
    assert read_metric(value, "evaluate").mean == value


@pytest.mark.parametrize(
    "make",
    [
        list, np.array, torch.tensor, torch.BoolTensor,
        lambda bits: torch.tensor(bits).to(torch.uint8),
        lambda bits: torch.tensor(bits, dtype=torch.bfloat16, requires_grad=True),
        lambda bits: [torch.tensor(bit) for bit in bits],
        lambda bits: np.array(bits, dtype=np.float32)[::1],
    ],
)  # fmt: skip
def test_a_vector_is_one_result_per_sample(make: Callable[[list[bool]], Any]) -> None:
    found = read_metric(make([True, False, True, True]), "evaluate")
    assert found.mean == 0.75
    assert found.samples is not None
    assert found.samples.dtype == torch.float64
    assert found.samples.tolist() == [1.0, 0.0, 1.0, 1.0]


@pytest.mark.parametrize("make", [torch.zeros, np.zeros])
def test_a_buffer_that_evaluate_uses_again_is_copied(make: Callable[..., Any]) -> None:
    buffer = make(4, dtype=torch.float64 if make is torch.zeros else np.float64)
    found = read_metric(buffer, "evaluate")
    buffer[:] = 1
    assert found.samples is not None
    assert found.samples.tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (None, "test returned None; it must return a number"),
        ("0.9", "test returned '0.9'"),
        ({}, "test returned {}"),
        (1j, "must return a number"),
        (10**400, "must return a number"),
        (np.array(["a"]), "must return a number"),
        (math.nan, "test returned nan"),
        (-math.inf, "test returned -inf"),
        ([0.5, math.nan], "NaN or infinite results"),
        ([], r"shape \(0,\)"),
        (torch.zeros(3, 2), r"shape \(3, 2\)"),
        (torch.zeros(3, 1), r"one per sample as a vector"),
        ([[0.5], [0.5, 1.0]], "must return a number"),
    ],
)
def test_all_else_is_refused_by_name(value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_metric(value, "test")


def pair(n: int, losses: int, gains: int, both: int) -> tuple[Tensor, Tensor]:
    """Right and wrong answers of a baseline and of another model, as counts."""
    baseline, other = torch.zeros(2, n, dtype=torch.float64)
    baseline[: losses + both] = 1
    other[losses : losses + both + gains] = 1
    return baseline, other


@pytest.mark.parametrize(("losses", "gains"), [(0, 0), (3, 0), (0, 3), (10, 4), (30, 30)])
def test_the_interval_is_the_adjusted_wald_interval(losses: int, gains: int) -> None:
    """Of Bonett & Price 2012, about the observed difference."""
    n = 200
    baseline, other = pair(n, losses, gains, both=120)
    low, high = loss_interval(SURE, Metric(0.0, baseline), Metric(0.0, other))  # type: ignore[misc]
    p, q = (losses + 1) / (n + 2), (gains + 1) / (n + 2)
    reach = 1.959964 * math.sqrt((p + q - (p - q) ** 2) / (n + 1))
    assert (low + high) / 2 == pytest.approx((losses - gains) / n)
    assert (high - low) / 2 == pytest.approx(reach, rel=1e-6)


@pytest.mark.parametrize("relative", [True, False])
@pytest.mark.parametrize("higher_is_better", [True, False])
@pytest.mark.parametrize("sign", [1, -1])
def test_the_standard_error_is_that_of_the_bootstrap(
    relative: bool, higher_is_better: bool, sign: int
) -> None:
    generator = torch.Generator().manual_seed(0)
    n = 4000
    baseline = sign * (2 + torch.randn(n, generator=generator, dtype=torch.float64))
    other = baseline * 0.7 + 0.3 * torch.randn(n, generator=generator, dtype=torch.float64)
    kind: dict[str, Any] = {"relative" if relative else "absolute": 0.1}
    budget = LossBudget(**kind, higher_is_better=higher_is_better, confidence=0.9)
    draws = torch.randint(n, (1500, n), generator=generator)
    losses = [
        budget.loss(float(b), float(o))
        for b, o in zip(baseline[draws].mean(1), other[draws].mean(1), strict=True)
    ]
    low, high = loss_interval(budget, Metric(0.0, baseline), Metric(0.0, other))  # type: ignore[misc]
    assert (low + high) / 2 == pytest.approx(budget.loss(baseline.mean(), other.mean()))  # type: ignore[arg-type]
    assert (high - low) / 2 == pytest.approx(1.645 * float(np.std(losses)), rel=0.08)
    assert (low + high) / 2 < loss_bound(budget, baseline, other) < high


def test_only_two_vectors_give_an_interval() -> None:
    one, many = Metric(0.5), Metric(0.5, torch.tensor([0.0, 1.0], dtype=torch.float64))
    assert loss_interval(SURE, one, many) is None
    assert loss_interval(SURE, many, one) is None
    assert loss_interval(LossBudget(relative=0.1), many, many) is not None


def coverage(budget: LossBudget, truth: float, n: int, cells: tuple[float, float, float]) -> float:
    """How often the bound is above the true loss, over 20,000 data sets of ``n`` samples.

    Args:
        budget: The budget.
        truth: The true loss.
        n: Samples.
        cells: Probabilities of lost, won and right in both.
    """
    rng = np.random.default_rng(0)
    counts = rng.multinomial(n, [*cells, max(0.0, 1 - sum(cells))], size=20_000)[:, :3]
    if budget.relative is None:
        # The bound is a function of the difference alone; few distinct calls are needed.
        counts[:, 2] = np.minimum(counts[:, 2], 1)
    seen, times = np.unique(counts, axis=0, return_counts=True)
    if len(seen) > 2000:
        seen, times = counts[:2000], np.ones(2000)
    covered = [loss_bound(budget, *pair(n, *map(int, row))) >= truth - 1e-12 for row in seen]
    return float(np.average(covered, weights=times))


@pytest.mark.parametrize("n", [50, 200, 1000, 2000])
@pytest.mark.parametrize("expected", [0.1, 1.0, 2.4, 3.9, 5.0, 10.0])
@pytest.mark.parametrize("share_won", [0.0, 0.3])
def test_the_bound_covers_where_few_samples_differ(
    n: int, expected: float, share_won: float
) -> None:
    """``expected`` samples are lost in the mean: the normal quantile alone gives 0.90 here."""
    lost, won = expected / n, share_won * expected / n
    assert coverage(SURE, lost - won, n, (lost, won, 0.5)) >= 0.94


@pytest.mark.parametrize("n", [50, 500])
def test_the_bound_covers_a_perfect_baseline(n: int) -> None:
    """All right in both: it is not certain that the next one is right too."""
    lost = 2.0 / n
    assert coverage(SURE, lost, n, (lost, 0.0, 1 - lost)) >= 0.94
    assert loss_bound(SURE, torch.ones(n), torch.ones(n)) >= 1 - 0.05 ** (1 / n)  # exact binomial


def test_the_bound_covers_a_relative_loss() -> None:
    budget = LossBudget(relative=0.01, confidence=0.95)
    for n in (100, 1000):
        assert coverage(budget, 0.03 / 0.83, n, (0.05, 0.02, 0.78)) >= 0.935


def test_the_bound_covers_real_valued_metrics() -> None:
    """Lower is better, skewed, few samples: a cross entropy."""
    budget = LossBudget(absolute=0.01, higher_is_better=False, confidence=0.9)
    generator = torch.Generator().manual_seed(0)
    shape = (2000, 100)
    baseline = torch.empty(shape, dtype=torch.float64).exponential_(generator=generator)
    noise = torch.randn(shape, dtype=torch.float64, generator=generator)
    worse = baseline * (0.2 * noise).exp() + 0.01
    truth = math.exp(0.02) - 1 + 0.01
    found = [loss_bound(budget, *both) >= truth for both in zip(baseline, worse, strict=True)]
    assert np.mean(found) >= 0.88


@pytest.mark.parametrize("n", [200, 2000])
def test_the_bound_is_no_wider_than_it_must_be(n: int) -> None:
    """A model of no loss at all with 2 % of its answers changed either way."""
    bounds = [
        loss_bound(SURE, *pair(n, *map(int, row)))
        for row in np.random.default_rng(0).multinomial(n, [0.02, 0.02, 0.8, 0.16], 200)[:, :3]
    ]
    assert np.mean(bounds) < 1.25 * 1.645 * math.sqrt(0.04 / n) + 1 / n


def test_a_real_valued_metric_is_not_judged_by_its_range() -> None:
    """Cross entropies reach from 0 to 10, but their changes do not."""
    generator = torch.Generator().manual_seed(0)
    baseline = 10 * torch.rand(1000, dtype=torch.float64, generator=generator)
    change = 0.01 * torch.randn(1000, dtype=torch.float64, generator=generator)
    budget = LossBudget(absolute=0.01, higher_is_better=False, confidence=0.95)
    assert loss_bound(budget, baseline, baseline + change) < 0.002


def test_more_confidence_asks_for_more() -> None:
    both = pair(300, 5, 2, both=200)
    bounds = [
        loss_bound(LossBudget(absolute=0.01, confidence=c), *both) for c in (0.6, 0.9, 0.99, 0.999)
    ]
    assert bounds == sorted(bounds)
    assert bounds[0] > 3 / 300


@given(st.integers(200, 3000), st.integers(0, 12), st.integers(0, 12))
def test_the_p_value_is_where_the_bound_meets_the_limit(n: int, lost: int, won: int) -> None:
    baseline, other = pair(n, lost, won, both=n // 2)
    found = p_value(LossBudget(absolute=0.05), baseline, other)
    if 1e-6 < found < 0.5:
        at = LossBudget(absolute=0.05, confidence=1 - found)
        assert loss_bound(at, baseline, other) == pytest.approx(0.05, rel=1e-6)
    elif found == 1.0:
        assert loss_bound(LossBudget(absolute=0.05, confidence=0.501), baseline, other) > 0.05


def test_a_tuple_is_no_metric() -> None:
    with pytest.raises(ValueError, match=r"evaluate returned the tuple \(0.7, 0.9\)"):
        read_metric((0.7, 0.9), "evaluate")


def test_what_is_no_metric_is_shown_in_one_line() -> None:
    """Logits of a whole split, say, in a list of arrays."""
    for value in ({"logits": [0.5] * 1000}, ([0.5] * 1000, 1), [["a"] * 1000]):
        with pytest.raises(ValueError, match="evaluate returned") as error:
            read_metric(value, "evaluate")
        assert len(str(error.value)) < 250
        assert "\n" not in str(error.value)
