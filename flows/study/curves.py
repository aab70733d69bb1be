"""From the points of runs to means with intervals: pure arithmetic, a few numbers a run.

Intervals are 95 % t-intervals over seeds. Means at an equal budget interpolate each seed's curve
linearly between its rounds first, and go as far as every seed does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Axis = Literal["steps", "cpu_seconds", "tokens"]
Metric = Literal["miou", "r1_70"]
AXES: dict[Axis, str] = {
    "steps": "optimiser steps",
    "cpu_seconds": "CPU seconds (one core)",
    "tokens": "tokens through the models",
}
METRICS: dict[Metric, str] = {"miou": "eval mIoU", "r1_70": "eval R1@0.7"}
CONFIDENCE = 0.95


@dataclass(frozen=True, slots=True)
class Point:
    """A policy of a run: what had been spent until it was committed, and how it does."""

    round: int
    steps: int
    """Optimiser steps so far; so for the three below."""
    cpu_seconds: float
    seconds: float
    """Wall-clock."""
    tokens: int
    """Through student and teacher, in all stages but the evaluation."""
    miou: float
    """Eval split, protocol `strict`, as r1_70."""
    r1_70: float
    resumed: bool
    """Whether the round was killed and continued."""
    stage_cpu_seconds: dict[str, float]
    """Of this round alone."""
    examples: tuple[str, ...]
    """Ids of the examples drawn for this round, in order."""


@dataclass(frozen=True, slots=True)
class Result:
    arm: str
    learning_rate: float | None
    seed: int
    points: tuple[Point, ...]
    """One a policy, the base first."""

    @property
    def last(self) -> Point:
        return self.points[-1]


@dataclass(frozen=True, slots=True)
class Interval:
    mean: float
    low: float | None
    """None for a single value, of which there is no interval."""
    high: float | None
    count: int


def t_interval(values: Sequence[float]) -> Interval:
    """Mean and 95 % t-interval of independent values, at least one."""
    mean = statistics.fmean(values)
    if len(values) == 1:
        return Interval(mean, None, None, 1)
    error = statistics.stdev(values) / math.sqrt(len(values))
    half = t_quantile(0.5 + CONFIDENCE / 2, len(values) - 1) * error
    return Interval(mean, mean - half, mean + half, len(values))


def paired_difference(a: Sequence[Result], b: Sequence[Result], metric: Metric) -> Interval | None:
    """t-interval of a - b at the last rounds, over the seeds that both have; None without one."""
    ours, theirs = ({r.seed: getattr(r.last, metric) for r in x} for x in (a, b))
    both = sorted(ours.keys() & theirs.keys())
    return t_interval([ours[s] - theirs[s] for s in both]) if both else None


def value_at(points: Sequence[Point], axis: Axis, budget: float, metric: Metric) -> float:
    """The metric at a budget, linear between rounds. Raises ValueError outside of the curve."""
    if not 0 <= budget <= getattr(points[-1], axis):
        raise ValueError(f"{axis} {budget} is outside of the curve")
    before = points[0]
    for point in points:
        x0, x1 = getattr(before, axis), getattr(point, axis)
        if budget <= x1:
            y0, y1 = getattr(before, metric), getattr(point, metric)
            share = 1.0 if x1 == x0 else (budget - x0) / (x1 - x0)
            return float(y0 + share * (y1 - y0))
        before = point
    raise AssertionError("a budget within the curve lies between two of its points")


def mean_curve(
    results: Sequence[Result], axis: Axis, metric: Metric, points: int = 60
) -> list[tuple[float, Interval]]:
    """(budget, mean over seeds with its interval), as far as every seed goes."""
    end = min(getattr(r.last, axis) for r in results)
    # min: a product of floats may lie a rounding error beyond the end.
    budgets = [min(end, end * i / (points - 1)) for i in range(points)] if end else [0.0]
    return [
        (b, t_interval([value_at(r.points, axis, b, metric) for r in results])) for b in budgets
    ]


def by_round(results: Sequence[Result], axis: Axis, metric: Metric) -> list[tuple[float, float]]:
    """(mean budget, mean metric) of each round, over the results."""
    rounds = min(len(r.points) for r in results)
    return [
        (
            statistics.fmean(getattr(r.points[k], axis) for r in results),
            statistics.fmean(getattr(r.points[k], metric) for r in results),
        )
        for k in range(rounds)
    ]


def budget_to_reach(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """Where a polyline first reaches `level`; None where it never does."""
    x0, y0 = curve[0]
    if y0 >= level:
        return x0
    for x1, y1 in curve[1:]:
        if y1 >= level:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
        x0, y0 = x1, y1
    return None


def t_quantile(probability: float, freedom: int) -> float:
    """Quantile of Student's t with `freedom` degrees of freedom, for probabilities above 1/2."""
    low, high = 0.0, 1.0
    while _t_cdf(high, freedom) < probability:
        high *= 2
    for _ in range(200):
        middle = (low + high) / 2
        low, high = (middle, high) if _t_cdf(middle, freedom) < probability else (low, middle)
    return (low + high) / 2


def _t_cdf(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: the finite sums of Abramowitz & Stegun, 26.7.3 and 26.7.4."""
    theta = math.atan(t / math.sqrt(freedom))
    sine, cosine = math.sin(theta), math.cos(theta)
    if freedom % 2:
        term, total = cosine, 0.0
        for k in range(1, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        within = 2 / math.pi * (theta + sine * total)
    else:
        term, total = 1.0, 0.0
        for k in range(0, freedom - 1, 2):
            total += term
            term *= cosine**2 * (k + 1) / (k + 2)
        within = sine * total
    return 0.5 + within / 2
