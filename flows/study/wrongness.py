"""What a study's annotations have wrong, and how well an unreliable teacher tells (TRPV)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from statistics import fmean

from flows.demo import read_judged
from flows.study.plan import Plan, StudyRun
from opd_core.tinyworld.wrongness import (
    BAD_BELOW,
    Annotated,
    Filtering,
    Judged,
    filtering,
    paired,
)


@dataclass(frozen=True, slots=True)
class Wrongness:
    """Of a study's training annotations, pooled over its seeds."""

    sentences: int
    bad: float
    """Share of them."""
    seconds_longer: float
    """Mean of annotated length - true length."""
    judged: int
    """Sentences that a teacher answered."""
    filtering: tuple[Filtering, ...]
    """By `min_teacher_iou`; none where no arm asked the teacher, or no annotation is bad."""


def read_wrongness(plan: Plan, runs: Sequence[StudyRun]) -> Wrongness:
    """Of the worlds of `runs`, complete runs that are no tuning, and of what their teacher answered
    (the first run of each seed in which it was asked)."""
    worlds = {seed: annotated(plan.world(seed)) for seed in {r.seed: None for r in runs}}
    judged: dict[int, list[Judged]] = {}
    for run in runs:
        if run.rounds and not judged.get(run.seed):
            judged[run.seed] = read_judged(plan.path(run), worlds[run.seed])
    sentences = [one for world in worlds.values() for one in world.values()]
    pooled = list(chain.from_iterable(judged.values()))
    return Wrongness(
        len(sentences),
        fmean(one.iou < BAD_BELOW for one in sentences),
        fmean(one.seconds_longer for one in sentences),
        len(pooled),
        filtering(pooled),
    )


def annotated(world: Path) -> dict[str, Annotated]:
    """Example id -> annotation and truth, of a study's world. The truth of its tune videos comes
    last, and has no annotation."""
    training, truth = world / "train-without-tune.jsonl", world / "train_truth.jsonl"
    # Of a world that is annotated cleanly `tinyworld make` leaves the truth out.
    return paired(training, truth if truth.exists() else training)
