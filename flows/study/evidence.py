"""All that a study's report is made of, and the numbers that are computed from it once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from statistics import fmean
from typing import Any

from flows.study.claims import Claim, judge_claims
from flows.study.curves import Interval, Metric, Result, by_round, t_interval
from flows.study.plan import Plan
from flows.study.wrongness import Wrongness


@dataclass(frozen=True, slots=True)
class ArmRow:
    """A line of the table: means over the seeds that are there."""

    arm: str
    title: str
    learning_rate: float | None
    seeds: int
    rounds: int
    steps: float
    tokens: float
    cpu_seconds: float
    miou: Interval
    """At the last round."""
    above_base: Interval | None
    """Paired with the same run's policy 0; None where nothing was trained."""
    best_miou: float
    """The highest of the rounds' mean mIoUs."""
    r1_30: Interval
    r1_50: Interval
    r1_70: Interval
    no_span: Interval
    seconds_longer: Interval | None
    """None where a seed has no answer with a span."""


@dataclass(frozen=True)
class Evidence:
    plan: Plan
    results: Sequence[Result]
    tuning: Sequence[Result]
    """On the tune split, which is in none of the numbers below."""
    tuned: Mapping[str, float]
    """The learning rate of each trained arm."""
    missing: Mapping[str, str]
    """Run -> why it is not there."""
    wrongness: Wrongness
    """Of the annotations that were trained on."""
    sessions: Sequence[Mapping[str, Any]] = field(default_factory=list)
    """command, machine, commit and began of each time the study was run."""

    @cached_property
    def by_arm(self) -> dict[str, list[Result]]:
        """Results of each arm, in the order of the file; arms without any are left out."""
        groups = {arm: [r for r in self.results if r.arm == arm] for arm in self.plan.study.arms}
        return {arm: results for arm, results in groups.items() if results}

    @cached_property
    def claims(self) -> list[Claim]:
        return judge_claims(self.by_arm, self.plan.study.claims)

    @cached_property
    def rows(self) -> list[ArmRow]:
        return [self._row(arm, results) for arm, results in self.by_arm.items()]

    def _row(self, arm: str, results: Sequence[Result]) -> ArmRow:
        def mean(name: str) -> float:
            return fmean(getattr(r.last, name) for r in results)

        def at_end(metric: Metric) -> Interval:
            return t_interval([getattr(r.last, metric) for r in results])

        rounds = results[0].last.round
        longer = [s for r in results if (s := r.last.seconds_longer) is not None]
        gained = [r.last.miou - r.points[0].miou for r in results]
        return ArmRow(
            arm=arm,
            title=self.plan.study.arms[arm].title,
            learning_rate=results[0].learning_rate,
            seeds=len(results),
            rounds=rounds,
            steps=mean("steps"),
            tokens=mean("tokens"),
            cpu_seconds=mean("cpu_seconds"),
            miou=at_end("miou"),
            above_base=t_interval(gained) if rounds else None,
            best_miou=max(value for _, value in by_round(results, "steps", "miou")),
            r1_30=at_end("r1_30"),
            r1_50=at_end("r1_50"),
            r1_70=at_end("r1_70"),
            no_span=t_interval([r.last.no_span for r in results]),
            seconds_longer=t_interval(longer) if len(longer) == len(results) else None,
        )

    @cached_property
    def cpu_seconds(self) -> float:
        """CPU seconds of all runs that are there, tuning included."""
        return sum(r.last.cpu_seconds for r in (*self.tuning, *self.results))

    @cached_property
    def resumed(self) -> list[str]:
        """Runs with a round that was killed and continued."""
        return [
            f"{r.arm}/seed-{r.seed}, round {p.round}"
            for r in self.results
            for p in r.points
            if p.resumed
        ]

    def same_examples(self) -> tuple[int, int, float]:
        """(rounds whose examples are those of the first trained arm with the seed, rounds compared,
        smallest share of examples in common)."""
        trained = [r for r in self.results if r.last.round]
        first = {r.seed: r for r in reversed(trained)}
        same = compared = 0
        smallest = 1.0
        for result in trained:
            for ours, theirs in zip(result.points[1:], first[result.seed].points[1:], strict=False):
                a, b = set(ours.examples), set(theirs.examples)
                compared += 1
                same += a == b
                smallest = min(smallest, len(a & b) / len(a | b))
        return same, compared, smallest
