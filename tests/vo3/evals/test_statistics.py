"""Intervals and tests against figures worked out elsewhere."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from vo3.evals import statistics

pytestmark = pytest.mark.quick


# From the closed form, by hand; 0 of 10 and 10 of 10 are Wilson's own examples of ends that a normal interval gets wrong.
@pytest.mark.parametrize(
    ("right", "total", "low", "high"),
    [
        (0, 10, 0.0, 0.2775),
        (10, 10, 0.7225, 1.0),
        (5, 10, 0.2366, 0.7634),
        (81, 100, 0.7222, 0.8749),
    ],
)
def test_wilson(right, total, low, high):
    assert statistics.wilson(right, total) == pytest.approx((low, high), abs=6e-5)


@given(st.integers(1, 500), st.data())
def test_wilson_solves_its_equation(total, data):
    """Its ends are where the score test turns: |p - w| = z sqrt(w (1 - w) / n)."""
    right = data.draw(st.integers(0, total))
    share = right / total
    for end in statistics.wilson(right, total):
        assert 0 <= end <= 1
        gap = statistics.Z95 * math.sqrt(end * (1 - end) / total)
        assert abs(share - end) == pytest.approx(gap, abs=1e-9)


def test_nothing_counted_is_no_number():
    assert statistics.wilson(0, 0) == (0.0, 1.0)
    assert str(statistics.proportion(0, 0)) == "-"
    assert math.isnan(statistics.mean_of_groups([]).value)


def test_mean_of_groups_is_not_the_share_of_all():
    figure = statistics.mean_of_groups([(1, 1), (0, 99), (0, 0)])
    assert (figure.value, figure.total) == (50.0, 100)
    # Groups with one question leave much open, however many the other has.
    assert figure.high - figure.low > 30
    wide, narrow = (statistics.mean_of_groups([(5 * n, 10 * n)] * 7) for n in (1, 100))
    assert wide.high - wide.low > 5 * (narrow.high - narrow.low) > 0


def test_mcnemar():
    assert statistics.mcnemar(0, 0) == 1.0
    assert statistics.mcnemar(5, 5) == 1.0
    assert statistics.mcnemar(0, 5) == pytest.approx(2 / 32)  # all five one way: 2 * (1/2)^5
    assert statistics.mcnemar(1, 9) == pytest.approx(2 * (1 + 10) / 1024)
    assert statistics.mcnemar(9, 1) == statistics.mcnemar(1, 9)
    assert statistics.mcnemar(400, 500) == pytest.approx(0.000965, rel=0.02)  # normal: z = 3.3
