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

import numpy as np

Axis = Literal["steps", "cpu_seconds", "tokens"]
Metric = Literal["miou", "r1_30", "r1_50", "r1_70"]
AXES: dict[Axis, str] = {
    "steps": "optimiser steps",
    "cpu_seconds": "CPU seconds (one core)",
    "tokens": "tokens through the models",
}
UNITS: dict[Axis, str] = {"steps": "steps", "cpu_seconds": "CPU seconds", "tokens": "tokens"}
METRICS: dict[Metric, str] = {
    "miou": "mIoU", "r1_30": "R1@0.3", "r1_50": "R1@0.5", "r1_70": "R1@0.7",
}  # fmt: skip
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
    """Eval split, protocol `strict`, as all that follow."""
    r1_30: float
    r1_50: float
    r1_70: float
    no_span: float
    """Share of the answers in which no span can be read."""
    seconds_longer: float | None
    """Mean of answered - true length, over the answers with a span; None where there is none."""
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
    from scipy.special import stdtrit

    half = float(stdtrit(len(values) - 1, 0.5 + CONFIDENCE / 2)) * error
    return Interval(mean, mean - half, mean + half, len(values))


def tuning_means(tuning: Sequence[Result], seeds: Sequence[int]) -> dict[str, dict[float, float]]:
    """Arm -> learning rate -> mean over the tune seeds of the last mIoU, without the rates that a
    seed lacks."""
    mious: dict[tuple[str, float], list[float]] = {}
    for result in tuning:
        assert result.learning_rate is not None
        mious.setdefault((result.arm, result.learning_rate), []).append(result.last.miou)
    means: dict[str, dict[float, float]] = {}
    for (arm, rate), values in mious.items():
        if len(values) == len(seeds):
            means.setdefault(arm, {})[rate] = statistics.fmean(values)
    return means


def value_at(points: Sequence[Point], axis: Axis, budget: float, metric: Metric) -> float:
    """The metric at a budget, linear between rounds. Raises ValueError outside of the curve."""
    if not 0 <= budget <= getattr(points[-1], axis):
        raise ValueError(f"{axis} {budget} is outside of the curve")
    costs, values = zip(*((getattr(p, axis), getattr(p, metric)) for p in points), strict=True)
    return float(np.interp(budget, costs, values))


def mean_curve(
    results: Sequence[Result], axis: Axis, metric: Metric, points: int = 60
) -> list[tuple[float, Interval]]:
    """(budget, mean over seeds with its interval), as far as every seed goes."""
    end = min(getattr(r.last, axis) for r in results)
    budgets = np.linspace(0, end, points).tolist() if end else [0.0]
    return [
        (b, t_interval([value_at(r.points, axis, b, metric) for r in results])) for b in budgets
    ]


def by_round(results: Sequence[Result], axis: Axis, metric: Metric) -> list[tuple[float, float]]:
    """(mean budget, mean metric) of each round, over the results."""
    return [
        (
            statistics.fmean(getattr(p, axis) for p in points),
            statistics.fmean(getattr(p, metric) for p in points),
        )
        for points in zip(*(r.points for r in results), strict=False)  # as far as the shortest
    ]


def budget_to_reach(curve: Sequence[tuple[float, float]], level: float) -> float | None:
    """Budget at which a polyline first reaches `level`; None where it never does."""
    x0, y0 = curve[0]
    if y0 >= level:
        return x0
    for x1, y1 in curve[1:]:
        if y1 >= level:
            return x0 + (x1 - x0) * (level - y0) / (y1 - y0)
        x0, y0 = x1, y1
    return None
