"""Means, intervals and interpolation of a study, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flows.study.curves import (
    budget_to_reach,
    by_round,
    mean_curve,
    paired_difference,
    t_interval,
    t_quantile,
    value_at,
)
from tests.flows.study.study_points import result
from tests.known import known


def test_t_quantiles() -> None:
    """The closed forms of 1, 2 and 4 degrees of freedom (Shaw 2006), and the normal's limit."""
    p = 0.975
    root_alpha = math.sqrt(4 * p * (1 - p))
    four = 2 * math.sqrt(math.cos(math.acos(root_alpha) / 3) / root_alpha - 1)
    expected = {
        1: math.tan(math.pi * (p - 0.5)),
        2: (2 * p - 1) / math.sqrt(2 * p * (1 - p)),
        4: four,
        100_000: 1.959988,
    }
    for freedom, quantile in expected.items():
        assert t_quantile(p, freedom) == pytest.approx(quantile, rel=1e-6)


def test_t_quantile_inverts_the_density() -> None:
    """The density integrated numerically up to the quantile is the probability."""
    for freedom in (3, 5, 8):
        norm = math.gamma((freedom + 1) / 2) / (
            math.sqrt(freedom * math.pi) * math.gamma(freedom / 2)
        )
        end, cells = t_quantile(0.9, freedom), 20_000
        step = end / cells
        area = sum(
            norm * (1 + ((i + 0.5) * step) ** 2 / freedom) ** (-(freedom + 1) / 2)
            for i in range(cells)
        )
        assert 0.5 + area * step == pytest.approx(0.9, abs=1e-7)


def test_the_interval_of_a_mean() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom, a standard deviation of 1
    assert interval.mean == 2.0 and interval.count == 3
    assert interval.low == pytest.approx(2 - half) and interval.high == pytest.approx(2 + half)


def test_one_value_has_no_interval() -> None:
    assert t_interval([0.5]).low is None and t_interval([0.5]).mean == 0.5


def test_a_paired_difference_forgets_what_the_seeds_share() -> None:
    a = [result("a", s, (0, 0), (1, 0.1 * s + 0.02)) for s in range(5)]
    b = [result("b", s, (0, 0), (1, 0.1 * s)) for s in range(6)]
    difference = known(paired_difference(a, b, "miou"))
    assert difference.count == 5
    assert difference.mean == pytest.approx(0.02)
    assert difference.low == pytest.approx(0.02) and difference.high == pytest.approx(0.02)
    assert paired_difference(a, [result("b", 9, (0, 0))], "miou") is None


def test_between_rounds_a_curve_is_linear() -> None:
    points = result("a", 0, (0, 0.2), (10, 0.4), (30, 0.5)).points
    for budget, value in ((0, 0.2), (5, 0.3), (10, 0.4), (20, 0.45), (30, 0.5)):
        assert value_at(points, "cpu_seconds", budget, "miou") == pytest.approx(value)
    with pytest.raises(ValueError, match="outside of the curve"):
        value_at(points, "cpu_seconds", 31, "miou")


def test_a_mean_curve_goes_as_far_as_every_seed() -> None:
    results = [result("a", 0, (0, 0.2), (10, 0.4)), result("a", 1, (0, 0.4), (20, 0.8))]
    curve = mean_curve(results, "cpu_seconds", "miou", points=3)
    assert [budget for budget, _ in curve] == [0, 5, 10]
    assert [i.mean for _, i in curve] == pytest.approx([0.3, 0.4, 0.5])
    assert [b for b, _ in mean_curve(results, "steps", "miou", points=2)] == [0, 10]


def test_the_mean_of_a_round() -> None:
    results = [result("a", 0, (0, 0.2), (10, 0.4)), result("a", 1, (0, 0.4), (20, 0.8))]
    found = by_round(results, "cpu_seconds", "miou")
    assert found == pytest.approx(np.array([(0.0, 0.3), (15.0, 0.6)]))


def test_where_a_level_is_first_reached() -> None:
    curve = [(0.0, 0.4), (10.0, 0.3), (20.0, 0.5), (30.0, 0.45), (40.0, 0.7)]
    assert budget_to_reach(curve, 0.4) == 0.0
    assert budget_to_reach(curve, 0.45) == pytest.approx(17.5)
    assert budget_to_reach(curve, 0.6) == pytest.approx(36.0)
    assert budget_to_reach(curve, 0.71) is None


def test_a_mean_curve_ends_where_the_curve_does() -> None:
    """`end * 59 / 59` is more than `end` for some of these."""
    for end in (1.1, 2.836327402999999, 0.1, 7.7, 33.3, 1e-3):
        curve = mean_curve([result("a", 0, (0, 0.2), (end, 0.4))], "cpu_seconds", "miou")
        assert curve[-1][0] <= end and curve[-1][1].mean == pytest.approx(0.4)
