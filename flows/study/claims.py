"""A claim as a study's TOML says it, held against the runs: numbers, their intervals, verdicts.

    [[claims]]
    name = "Faster convergence"
    statement = "Video-OPD reaches GRPO's best mean mIoU in at most a third of its CPU seconds"
    arms = ["opd-8", "opd-1"]
    against = ["grpo"]
    rows = [{ measure = "cost_to_best", bound = 0.33 }, { at_equal = "cpu_seconds" }]

Every row compares every arm with every one that it is claimed against, by seed. A claim holds where
the whole 95 % interval is on its side of the bound, does not hold where the whole interval is on
the other, and is not settled otherwise. One that does not hold is a result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from flows.study.curves import (
    METRICS,
    UNITS,
    Axis,
    Interval,
    Metric,
    Result,
    budget_to_reach,
    by_round,
    t_interval,
    value_at,
)
from opd_core.config.section import Section

HOLDS = "holds here"
FAILS = "does not hold here"
OPEN = "not settled"
RESAMPLES = 2000

Kind = Literal["difference", "ratio"]
Arms = Annotated[tuple[str, ...], Field(min_length=1)]
Pairs = Sequence[tuple[Result, Result]]
"""The runs of two arms with the same seed."""


class RowSection(Section):
    """How two arms are compared in one number."""

    measure: Literal["difference", "cost_per_step", "cost_to_best"] = "difference"
    """`difference`: of their metric; `cost_per_step` and `cost_to_best` (until the other arm's best
    mean of the metric is reached): the ratio of their costs."""
    metric: Metric = "miou"
    at_equal: Axis | None = None
    """A difference is taken at the largest budget that both arms spent with every seed; without it,
    at the last rounds."""
    cost: Axis = "cpu_seconds"
    """Of the ratios."""
    bound: float = 0.0
    """A difference is claimed to be above it, a ratio at or below it."""

    @property
    def kind(self) -> Kind:
        return "difference" if self.measure == "difference" else "ratio"

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.kind == "ratio" and self.bound <= 0:
            raise ValueError(f"measure = {self.measure!r} needs a bound above 0, as bound = 0.2")
        return self


class ClaimSection(Section):
    name: str
    statement: str
    """What is claimed, as half a sentence."""
    arms: Arms
    """The claim's own arm first."""
    against: Arms
    rows: Annotated[tuple[RowSection, ...], Field(min_length=1)] = (RowSection(),)


@dataclass(frozen=True, slots=True)
class JudgedRow:
    """A row of a claim: two arms in one number, and what it says."""

    what: str
    kind: Kind
    value: float | None
    """None: there is no ratio, because the other arm never rose; infinite: its best was never
    reached."""
    low: float | None
    high: float | None
    bound: float
    verdict: str


@dataclass(frozen=True, slots=True)
class Claim:
    name: str
    statement: str
    verdict: str
    """Of the first comparison, which is the claim's own; the others are beside it."""
    comparisons: tuple[JudgedRow, ...]


def judge_claims(
    results: Mapping[str, Sequence[Result]], claims: Sequence[ClaimSection]
) -> list[Claim]:
    """Judge every claim of which two arms have a seed in common. `results`: of each arm, one a
    seed."""
    judged = []
    for claim in claims:
        comparisons = tuple(
            _compare(row, pairs)
            for row in claim.rows
            for arm in claim.arms
            for other in claim.against
            if (pairs := _pairs(results.get(arm, ()), results.get(other, ()), row.kind))
        )
        if comparisons:
            judged.append(Claim(claim.name, claim.statement, comparisons[0].verdict, comparisons))
    return judged


def _pairs(ours: Sequence[Result], theirs: Sequence[Result], kind: Kind) -> Pairs:
    """Pairs in the order of the seeds; what trained nothing has no cost, and is in no ratio."""
    by_seed = {result.seed: result for result in theirs}
    both = [(r, by_seed[r.seed]) for r in sorted(ours, key=lambda r: r.seed) if r.seed in by_seed]
    return [pair for pair in both if kind == "difference" or all(r.last.steps for r in pair)]


def _compare(row: RowSection, pairs: Pairs) -> JudgedRow:
    arm, other = (f"`{result.arm}`" for result in pairs[0])
    metric, cost = METRICS[row.metric], UNITS[row.cost]
    if row.measure == "cost_to_best":
        what = f"{cost} to {other}'s best mean {metric}, {arm} / {other}"
        value, low, high = _cost_to_best(row, pairs)
    elif row.measure == "cost_per_step":
        what = f"{cost} a step, {arm} / {other}"
        value, low, high = _bounds(_cost_per_step(row, pairs))
    elif row.at_equal is None:
        what = f"{metric} of {arm} - {other}, last round"
        ends = [(getattr(a.last, row.metric), getattr(b.last, row.metric)) for a, b in pairs]
        value, low, high = _bounds(t_interval([a - b for a, b in ends]))
    else:
        budget, interval = _at_equal(row.at_equal, row.metric, pairs)
        what = f"{metric} of {arm} - {other} at {budget:.0f} {UNITS[row.at_equal]}"
        value, low, high = _bounds(interval)
    verdict = _verdict(low, high, row.bound, above=row.kind == "difference")
    return JudgedRow(what, row.kind, value, low, high, row.bound, verdict)


def _bounds(interval: Interval) -> tuple[float, float | None, float | None]:
    return interval.mean, interval.low, interval.high


def _at_equal(axis: Axis, metric: Metric, pairs: Pairs) -> tuple[float, Interval]:
    budget = min(getattr(result.last, axis) for pair in pairs for result in pair)
    values = [[value_at(r.points, axis, budget, metric) for r in pair] for pair in pairs]
    return budget, t_interval([ours - theirs for ours, theirs in values])


def _cost_per_step(row: RowSection, pairs: Pairs) -> Interval:
    costs = [[getattr(r.last, row.cost) / r.last.steps for r in pair] for pair in pairs]
    return t_interval([ours / theirs for ours, theirs in costs])


def _cost_to_best(row: RowSection, pairs: Pairs) -> tuple[float | None, float | None, float | None]:
    """Ratio of the means' budgets to the other's best mean; a percentile bootstrap over seeds."""

    def ratio(chosen: Pairs) -> float:
        ours, theirs = (
            by_round(results, row.cost, row.metric) for results in zip(*chosen, strict=True)
        )
        best = max(value for _, value in theirs)
        cost, reached = budget_to_reach(theirs, best), budget_to_reach(ours, best)
        if not cost:
            return math.nan  # the other's best is its base: nothing to be faster to
        return math.inf if reached is None else reached / cost

    value = ratio(pairs)
    generator = random.Random(0)
    drawn = [ratio(generator.choices(pairs, k=len(pairs))) for _ in range(RESAMPLES)]
    drawn = sorted(r for r in drawn if not math.isnan(r))
    low = high = None
    # Resamples in which the other never rose say nothing; where they are many, neither does the
    # rest.
    if len(pairs) > 1 and not math.isnan(value) and len(drawn) >= 0.95 * RESAMPLES:
        low, high = drawn[int(0.025 * len(drawn))], drawn[int(0.975 * len(drawn))]
    return None if math.isnan(value) else value, low, high


def _verdict(low: float | None, high: float | None, bound: float, *, above: bool) -> str:
    if low is None or high is None:
        return OPEN
    if low > bound:
        return HOLDS if above else FAILS
    if high < bound or (high == bound and not above):
        return FAILS if above else HOLDS
    return OPEN
