"""Means, intervals and interpolation of a study, against closed forms."""

from __future__ import annotations

import math

import numpy as np
import pytest

from flows.study.curves import (
    budget_to_reach,
    by_round,
    mean_curve,
    t_interval,
    tuning_means,
    value_at,
)
from tests.flows.study.study_points import result


def test_the_interval_of_a_mean() -> None:
    interval = t_interval([1.0, 2.0, 3.0])
    half = 4.302653 / math.sqrt(3)  # t of 2 degrees of freedom, a standard deviation of 1
    assert interval.mean == 2.0 and interval.count == 3
    assert interval.low == pytest.approx(2 - half) and interval.high == pytest.approx(2 + half)


def test_one_value_has_no_interval() -> None:
    assert t_interval([0.5]).low is None and t_interval([0.5]).mean == 0.5


def test_a_rate_that_a_tune_seed_lacks_has_no_mean() -> None:
    tuning = [
        result("a", seed, (0, 0.2), (1, miou), rate=rate)
        for rate, mious in ((1e-3, (0.4, 0.6)), (1e-2, (0.9,)))
        for seed, miou in zip((100, 101), mious, strict=False)
    ]
    assert tuning_means(tuning, (100, 101)) == {"a": {1e-3: pytest.approx(0.5)}}


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
    """Where a product of floats, as `end * 59 / 59`, is more than `end` for some of these."""
    for end in (1.1, 2.836327402999999, 0.1, 7.7, 33.3, 1e-3):
        curve = mean_curve([result("a", 0, (0, 0.2), (end, 0.4))], "cpu_seconds", "miou")
        assert curve[-1][0] <= end and curve[-1][1].mean == pytest.approx(0.4)
