"""What the paper claims, held against the runs: a number, its interval, and a verdict from both.

A claim holds where the whole 95 % interval is on its side of the bound, does not hold where the
whole interval is on the other, and is not settled otherwise. One that does not hold is a result.
"""

from __future__ import annotations

import math
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.study.curves import (
    Interval,
    Metric,
    Result,
    budget_to_reach,
    by_round,
    paired_difference,
    t_interval,
    value_at,
)
from flows.study.plan import ClaimsSection

HOLDS = "holds here"
FAILS = "does not hold here"
OPEN = "not settled"
RESAMPLES = 2000
THIRD, FIFTH = 1 / 3, 1 / 5

Results = Mapping[str, Sequence[Result]]
Kind = Literal["difference", "ratio"]


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two arms in one number."""

    what: str
    kind: Kind
    value: float | None
    """None: the ratio has no value (the level was never reached)."""
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
    comparisons: tuple[Comparison, ...]


def judge_claims(results: Results, parts: ClaimsSection) -> list[Claim]:
    """Every claim whose arms have results. `results`: those of each arm, one a seed."""
    names = parts.parts()
    arms = {part: results[arm] for part, arm in names.items() if results.get(arm)}
    found = (
        _above_grpo(arms, names),
        _time_per_step(arms, names),
        _convergence(arms, names),
        _tvdf(arms, names),
        _beyond_teacher(arms, names),
        _tree(arms, names),
    )
    return [claim for claim in found if claim is not None]


Arms = Mapping[str, Sequence[Result]]
Names = Mapping[str, str]


def _ours(names: Names, *first: str) -> tuple[str, ...]:
    """The parts that Video-OPD plays, the claim's own first."""
    return (*(first or ("opd", "opd_one")), *(p for p in names if p.startswith("variants.")))


def _above_grpo(arms: Arms, names: Names) -> Claim | None:
    found = [
        _final(arms, names, part, "grpo", metric) for part in _ours(names) for metric in _METRICS
    ]
    return _claim("OPD above GRPO", "at equal data Video-OPD ends above GRPO", found)


def _time_per_step(arms: Arms, names: Names) -> Claim | None:
    found = [_step_ratio(arms, names, part) for part in _ours(names, "opd_one", "opd")]
    statement = "an optimiser step of Video-OPD takes at most a fifth of the CPU seconds of GRPO's"
    return _claim("A fifth of GRPO's time per step", statement, found)


def _convergence(arms: Arms, names: Names) -> Claim | None:
    found = [_reach_ratio(arms, names, part) for part in _ours(names)]
    found += [_at_equal_cpu(arms, names, part, "grpo") for part in _ours(names)]
    statement = "Video-OPD reaches GRPO's best mean mIoU in at most a third of GRPO's CPU seconds"
    return _claim("Faster convergence", statement, found)


def _tvdf(arms: Arms, names: Names) -> Claim | None:
    others = ("without_tvdf", "without_trpv", "without_dbtp")
    found = [_final(arms, names, "tvdf", part, "miou") for part in others]
    found += [_at_equal_cpu(arms, names, "tvdf", part) for part in others]
    return _claim("TVDF helps", "with TRPV and DBTP the mIoU ends above that without them", found)


def _beyond_teacher(arms: Arms, names: Names) -> Claim | None:
    found = [_final(arms, names, part, "teacher", "miou") for part in _ours(names)]
    return _claim("Student beyond teacher", "the student ends above its teacher", found)


def _tree(arms: Arms, names: Names) -> Claim | None:
    found = [_at_equal_cpu(arms, names, "opd", "opd_one")]
    statement = "8 rollouts in a prefix tree give a higher mIoU than 1 for the same CPU seconds"
    return _claim("The 8-rollout tree beats 1 rollout", statement, found)


_METRICS: dict[Metric, str] = {"miou": "mIoU", "r1_70": "R1@0.7"}


def _claim(name: str, statement: str, found: Sequence[Comparison | None]) -> Claim | None:
    comparisons = tuple(c for c in found if c is not None)
    if not comparisons:
        return None
    return Claim(name, statement, comparisons[0].verdict, comparisons)


def _final(arms: Arms, names: Names, a: str, b: str, metric: Metric) -> Comparison | None:
    if a not in arms or b not in arms:
        return None
    interval = paired_difference(arms[a], arms[b], metric)
    what = f"{_METRICS[metric]} of `{names[a]}` - `{names[b]}`, last round"
    return _difference(what, interval)


def _at_equal_cpu(arms: Arms, names: Names, a: str, b: str) -> Comparison | None:
    if a not in arms or b not in arms:
        return None
    budget = min(r.last.cpu_seconds for part in (a, b) for r in arms[part])
    ours, theirs = (
        {r.seed: value_at(r.points, "cpu_seconds", budget, "miou") for r in arms[part]}
        for part in (a, b)
    )
    both = sorted(ours.keys() & theirs.keys())
    interval = t_interval([ours[s] - theirs[s] for s in both]) if both else None
    what = f"mIoU of `{names[a]}` - `{names[b]}` at {budget:.0f} CPU seconds"
    return _difference(what, interval)


def _difference(what: str, interval: Interval | None) -> Comparison | None:
    if interval is None:
        return None
    verdict = _verdict(interval.low, interval.high, 0.0, above=True)
    return Comparison(what, "difference", interval.mean, interval.low, interval.high, 0.0, verdict)


def _step_ratio(arms: Arms, names: Names, part: str) -> Comparison | None:
    if part not in arms or "grpo" not in arms:
        return None
    ours, theirs = (
        {r.seed: r.last.cpu_seconds / r.last.steps for r in arms[p] if r.last.steps}
        for p in (part, "grpo")
    )
    both = sorted(ours.keys() & theirs.keys())
    if not both:
        return None
    interval = t_interval([ours[s] / theirs[s] for s in both])
    return Comparison(
        f"CPU seconds a step, `{names[part]}` / `{names['grpo']}`",
        "ratio",
        interval.mean,
        interval.low,
        interval.high,
        FIFTH,
        _verdict(interval.low, interval.high, FIFTH, above=False),
    )


def _reach_ratio(arms: Arms, names: Names, part: str) -> Comparison | None:
    """Of the budgets to reach GRPO's best mean mIoU; a percentile bootstrap over the seeds."""
    if part not in arms or "grpo" not in arms:
        return None
    ours, theirs = ({r.seed: r for r in arms[p]} for p in (part, "grpo"))
    seeds = sorted(ours.keys() & theirs.keys())
    if not seeds:
        return None

    def ratio(chosen: Sequence[int]) -> float:
        grpo = by_round([theirs[s] for s in chosen], "cpu_seconds", "miou")
        best = max(value for _, value in grpo)
        cost = budget_to_reach(grpo, best)
        reached = budget_to_reach(by_round([ours[s] for s in chosen], "cpu_seconds", "miou"), best)
        if not cost:
            return math.nan  # GRPO's best is the base: nothing to be faster to
        return math.inf if reached is None else reached / cost

    value = ratio(seeds)
    generator = random.Random(0)
    drawn = sorted(
        r
        for r in (ratio(generator.choices(seeds, k=len(seeds))) for _ in range(RESAMPLES))
        if not math.isnan(r)
    )
    low = high = None
    # Resamples in which GRPO never rose say nothing; where they are many, neither does the rest.
    if len(seeds) > 1 and not math.isnan(value) and len(drawn) >= 0.95 * RESAMPLES:
        low, high = drawn[int(0.025 * len(drawn))], drawn[int(0.975 * len(drawn))]
    return Comparison(
        f"CPU seconds to GRPO's best mean mIoU, `{names[part]}` / `{names['grpo']}`",
        "ratio",
        value if math.isfinite(value) else None,
        low,
        high,
        THIRD,
        _verdict(low, high, THIRD, above=False),
    )


def _verdict(low: float | None, high: float | None, bound: float, *, above: bool) -> str:
    if low is None or high is None:
        return OPEN
    if low > bound:
        return HOLDS if above else FAILS
    if high < bound or (high == bound and not above):
        return FAILS if above else HOLDS
    return OPEN
