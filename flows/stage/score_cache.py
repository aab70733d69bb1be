"""Scores that need no teacher: the same content was scored before, here or in another run.

Three places to copy from, in this order: other rounds of this run, the run named by `score.cache`,
and rollouts of the same example that said the same words (of those, one is scored). Rollouts that
other examples of the same round have in common are scored each: which of them came first would
depend on where a killed stage had stopped, and a resumed round has to give the same tables.

A copy is a row of its own that names the row which was computed (`reused_from`).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from opd_core.scoring.score_key import content_hash
from opd_core.types import Rollout, TeacherScore, VideoOPDError
from storage.runs.run import Run

if TYPE_CHECKING:
    from flows.stage.prepare import Work
    from flows.teachers import Teacher
    from opd_core.types import Batch

ROWS_AT_ONCE = 512
ROWS_WITH_HIDDEN_STATES = 16
"""Scores copied in one append; a hidden state is thousands of numbers a token."""


class Unscored(NamedTuple):
    """A rollout without its tokens."""

    rollout_id: str
    example_id: str
    tokens: int
    """Of its answer."""


@dataclass(frozen=True)
class Plan:
    """A round's unscored rollouts of one teacher: those that are copied, and those that are
    scored."""

    teacher: Teacher
    policy_version: int
    known: dict[Run, dict[str, list[Unscored]]]
    """run -> id of a rollout that is scored there -> rollouts that get a copy of its row."""
    scored: list[Unscored]
    """By the teacher, in order."""
    twins: dict[str, list[Unscored]]
    """id of one of `scored` -> rollouts that get a copy of its score."""

    @property
    def reused(self) -> int:
        groups = [self.twins, *self.known.values()]
        return sum(len(rows) for group in groups for rows in group.values())


def plan(
    work: Work, teacher: Teacher, policy_version: int, scorer: str, rollouts: Iterable[Rollout]
) -> Plan:
    """Find what was scored before, of the teacher's unscored `rollouts` of the round
    `policy_version`."""
    run, teacher_hash = work.run, teacher.weights_hash
    hashes: dict[Unscored, str] = {}
    for rollout in rollouts:
        light = Unscored(rollout.rollout_id, rollout.example_id, len(rollout.completion_token_ids))
        hashes[light] = content_hash(scorer, teacher_hash, rollout)
    sources: dict[str, tuple[str, Run]] = {}
    for source, rows in _sources(run, policy_version, work.config.score.cache):
        for digest, rollout_id in _computed(rows, teacher_hash, set(hashes.values())):
            sources.setdefault(digest, (rollout_id, source))
    known: dict[Run, dict[str, list[Unscored]]] = {}
    scored: list[Unscored] = []
    twins: dict[str, list[Unscored]] = {}
    first: dict[tuple[str, str], str] = {}
    for one, digest in hashes.items():
        if digest in sources:
            origin, source = sources[digest]
            known.setdefault(source, {}).setdefault(origin, []).append(one)
            continue
        mine = first.setdefault((one.example_id, digest), one.rollout_id)
        if mine == one.rollout_id:
            scored.append(one)
        else:
            twins.setdefault(mine, []).append(one)
    return Plan(teacher, policy_version, known, scored, twins)


def _sources(
    run: Run, policy_version: int, cache: Path | None
) -> Iterator[tuple[Run, pl.LazyFrame]]:
    """Where scores are known: other rounds, another run; nowhere, where the stage was forced."""
    if run.takes().forced("score", policy_version):
        return
    yield run, run.teacher_scores().filter(pl.col("policy_version") != policy_version)
    if cache is None:
        return
    try:
        other = Run.open(cache)
    except VideoOPDError as error:
        raise VideoOPDError(f"score.cache: {error}") from None
    if other.run_id != run.run_id:
        yield other, other.teacher_scores()


def _computed(rows: pl.LazyFrame, teacher_hash: str, wanted: set[str]) -> Iterator[tuple[str, str]]:
    """(content hash, rollout id) of rows whose content is wanted, oldest rollout id first."""
    if not wanted:
        return
    frame = rows.filter(pl.col("teacher_hash") == teacher_hash)
    for digest, rollout_id in sorted(
        frame.select("content_hash", "rollout_id").collect().iter_rows()
    ):
        if digest in wanted:
            yield digest, rollout_id


def copies(work: Work, plan: Plan) -> Iterator[list[TeacherScore]]:
    """The rows of what other rounds and runs have scored, in parts that fit into memory."""
    heavy = work.config.score.hidden_states
    rows_at_once = ROWS_WITH_HIDDEN_STATES if heavy else ROWS_AT_ONCE
    for source, groups in plan.known.items():
        ids = sorted(groups)
        for start in range(0, len(ids), rows_at_once):
            rows = _read(source, ids[start : start + rows_at_once], plan.teacher.weights_hash)
            yield [_copy(row, one, plan, source) for row in rows for one in groups[row.rollout_id]]


def _read(run: Run, ids: Sequence[str], teacher_hash: str) -> list[TeacherScore]:
    mine = pl.col("rollout_id").is_in(ids) & (pl.col("teacher_hash") == teacher_hash)
    return run.read("teacher_scores", TeacherScore, mine)


def with_twins(
    work: Work, plan: Plan, batches: Iterable[Batch[TeacherScore]]
) -> Iterator[Batch[TeacherScore]]:
    """The batches as the teacher scores them, with the copies for rollouts of the same words.

    In one batch, so that a killed stage has both or neither.
    """
    for batch in batches:
        again = [
            _copy(score, twin, plan, work.run)
            for score in batch.records
            for twin in plan.twins.get(score.rollout_id, ())
        ]
        faults = [
            replace(lost, item_id=twin.rollout_id)
            for lost in batch.quarantined
            for twin in plan.twins.get(lost.item_id, ())
        ]
        yield replace(
            batch,
            records=(*batch.records, *again),
            quarantined=(*batch.quarantined, *faults),
        )


def _copy(score: TeacherScore, one: Unscored, plan: Plan, source: Run) -> TeacherScore:
    return replace(
        score,
        rollout_id=one.rollout_id,
        policy_version=plan.policy_version,
        teacher_id=plan.teacher.name,
        reused_from=score.reused_from or f"{source.run_id}/{score.rollout_id}",
        seconds=0.0,
    )
