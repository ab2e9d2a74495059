"""Axes and ticks."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vq_plugin.tuning.report.scales import Axis, log_axis

positive = st.floats(1e-9, 1e12)


def test_places() -> None:
    linear = Axis(0, 4, 0, 100)
    assert [linear.at(value) for value in (-1, 0, 1, 4, 9)] == [0, 0, 25, 100, 100]
    downwards = Axis(1, 100, 200, 0, log=True)
    assert [downwards.at(value) for value in (1, 10, 100)] == [200, 100, 0]


@given(st.lists(positive, min_size=1, max_size=20))
def test_every_value_and_a_few_round_ticks_lie_on_a_logarithmic_axis(values: list[float]) -> None:
    axis = log_axis(values, 0, 100)
    assert all(0 < axis.at(value) < 100 for value in values)
    marks = [axis.at(value) for value in axis.ticks()]
    assert 2 <= len(marks) <= 5
    assert all(0 <= mark <= 100 for mark in marks)
    assert all(before < after for before, after in pairwise(marks))


@given(st.floats(-10, 10), st.floats(1e-6, 100))
def test_linear_ticks(low: float, span: float) -> None:
    axis = Axis(low, low + span, 0, 100)
    marks = [axis.at(value) for value in axis.ticks()]
    assert 2 <= len(marks) <= 5
    steps = [after - before for before, after in pairwise(marks)]
    assert max(steps) - min(steps) <= 0.03


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([200e3, 450e3], ["200000", "300000", "400000"]),
        ([100e3, 1.5e6], ["100000", "200000", "500000", "1e+06"]),
        ([13.3e3, 30e3], ["15000", "20000", "30000"]),
        ([220e3, 280e3], ["225000", "250000", "275000"]),
    ],
)
def test_round_bytes(values: list[float], expected: list[str]) -> None:
    assert [f"{value:g}" for value in log_axis(values, 0, 100).ticks()] == expected
