"""What a budget allows."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin import LossBudget

SCORES = st.floats(0.01, 1000)
LIMITS = st.floats(0.001, 0.999)


@pytest.mark.parametrize(
    ("budget", "baseline", "score", "holds"),
    [
        (LossBudget(relative=0.01), 0.92, 0.9108, True),
        (LossBudget(relative=0.01), 0.92, 0.9107, False),
        (LossBudget(relative=0.01), 0.92, 0.95, True),
        (LossBudget(absolute=0.01), 0.92, 0.91, True),
        (LossBudget(absolute=0.01), 0.92, 0.9099, False),
        # 0.92 - 0.91 is a little more than 0.01 in floating point.
        (LossBudget(absolute=0.1), 0.3, 0.2, True),
        (LossBudget(relative=0.1, higher_is_better=False), 2.0, 2.2, True),
        (LossBudget(relative=0.1, higher_is_better=False), 2.0, 2.21, False),
        (LossBudget(relative=0.1, higher_is_better=False), 2.0, 1.0, True),
        (LossBudget(absolute=0.5, higher_is_better=False), 2.0, 2.5, True),
        # A log-likelihood: the larger, the better, and negative.
        (LossBudget(relative=0.1), -2.0, -2.2, True),
        (LossBudget(relative=0.1), -2.0, -2.3, False),
        (LossBudget(absolute=0.1), 0.0, -0.05, True),
    ],
)
def test_scores_within_and_beyond_the_limit(
    budget: LossBudget, baseline: float, score: float, holds: bool
) -> None:
    assert budget.holds(baseline, score) is holds


@given(SCORES, SCORES, LIMITS)
def test_the_rules_are_those_of_the_definition(baseline: float, score: float, limit: float) -> None:
    relative, absolute = LossBudget(relative=limit), LossBudget(absolute=limit)
    assert relative.loss(baseline, score) == pytest.approx(1 - score / baseline, abs=1e-9)
    assert absolute.loss(baseline, score) == pytest.approx(baseline - score)
    assert relative.limit == absolute.limit == limit
    mirrored = LossBudget(relative=limit, higher_is_better=False)
    assert mirrored.loss(baseline, score) == pytest.approx(-relative.loss(baseline, score))
    assert relative.holds(baseline, baseline)


@pytest.mark.parametrize("score", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("higher_is_better", [True, False])
def test_what_is_no_number_never_holds(score: float, higher_is_better: bool) -> None:
    budget = LossBudget(absolute=0.5, higher_is_better=higher_is_better)
    assert not budget.holds(0.9, score)


@pytest.mark.parametrize("limit", [0, 1, -0.01, 1.0, 5, math.nan, math.inf, "1%", True, False])
def test_relative_limits_outside_0_to_1_are_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match=r"between 0 and 1, got .*1 % is 0\.01"):
        LossBudget(relative=limit)


@pytest.mark.parametrize("limit", [0, -0.01, math.nan, math.inf, "1%", True, False])
def test_absolute_limits_that_are_no_sizes_are_refused(limit: Any) -> None:
    with pytest.raises(ValueError, match="an absolute budget is a number above 0, got"):
        LossBudget(absolute=limit)


@pytest.mark.parametrize("floor", [-0.1, 1.1, 50, math.nan, True])
def test_floors_of_agreement_outside_0_to_1_are_refused(floor: Any) -> None:
    with pytest.raises(ValueError, match="min_agreement is from 0 to 1, or None"):
        LossBudget(relative=0.01, min_agreement=floor)


@pytest.mark.parametrize(
    ("budget", "baseline", "message"),
    [
        (LossBudget(absolute=1), 0.924, "one point is absolute=0.01"),
        (LossBudget(absolute=0.01), 92.4, "0.01 is 0.01 points; one point is absolute=1"),
    ],
)
def test_a_limit_in_another_unit_than_the_metric_is_an_error(
    budget: LossBudget, baseline: float, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        budget.check_unit(baseline)


@pytest.mark.parametrize(
    ("budget", "baseline"),
    [
        (LossBudget(absolute=1), 92.4),
        (LossBudget(absolute=0.01), 0.924),
        (LossBudget(absolute=0.01), 1.0),
        (LossBudget(relative=0.01), 92.4),
        (LossBudget(absolute=0.01, higher_is_better=False), 20.5),
        (LossBudget(absolute=1, higher_is_better=False), 0.3),
        (LossBudget(absolute=0.1), -2.0),
        (LossBudget(absolute=0.1), 0.0),
    ],
)
def test_limits_in_the_unit_of_the_metric(budget: LossBudget, baseline: float) -> None:
    budget.check_unit(baseline)


@pytest.mark.parametrize("limits", [{}, {"relative": 0.01, "absolute": 0.01}])
def test_exactly_one_limit_is_needed(limits: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="exactly one"):
        LossBudget(**limits)


def test_a_relative_budget_needs_a_baseline() -> None:
    with pytest.raises(ValueError, match="baseline other than 0; use absolute="):
        LossBudget(relative=0.01).loss(0.0, 0.5)


def test_budgets_read_well() -> None:
    assert str(LossBudget(relative=0.01)) == "1.00% of the baseline"
    assert str(LossBudget(absolute=0.005)) == "0.005 absolute"


@pytest.mark.parametrize("confidence", [0, 0.5, 1, 1.0, -0.9, 95, math.nan, "95%", True])
def test_confidences_outside_half_to_1_are_refused(confidence: Any) -> None:
    with pytest.raises(ValueError, match=r"a confidence is between 0\.5 and 1, got"):
        LossBudget(absolute=0.01, confidence=confidence)


def test_a_confidence_reads_well_and_does_not_change_the_loss() -> None:
    sure = LossBudget(relative=0.01, confidence=0.95)
    assert str(sure) == "1.00% of the baseline, with 0.95 confidence"
    assert sure.loss(0.9, 0.8) == LossBudget(relative=0.01).loss(0.9, 0.8)
