"""Made-up results of studies for the tests: a curve is a list of (cost, mIoU)."""

from __future__ import annotations

from collections.abc import Sequence

from flows.study.curves import Point, Result


def point(round: int, cost: float, miou: float, examples: Sequence[str] = ("a", "b")) -> Point:
    """Ten steps and a thousand tokens a round; R1@0.7 is half the mIoU, R1@0.5 as much."""
    return Point(
        round=round,
        steps=10 * round,
        cpu_seconds=cost,
        seconds=2 * cost,
        tokens=1000 * round,
        miou=miou,
        r1_30=min(1.0, 1.5 * miou),
        r1_50=miou,
        r1_70=miou / 2,
        no_span=0.01,
        seconds_longer=2 - miou,
        resumed=False,
        stage_cpu_seconds={"update": cost},
        examples=tuple(examples) if round else (),
    )


def result(arm: str, seed: int, *curve: tuple[float, float], rate: float | None = 1e-3) -> Result:
    points = [point(k, cost, miou) for k, (cost, miou) in enumerate(curve)]
    return Result(arm, rate if len(curve) > 1 else None, seed, tuple(points))
