"""What an update trains on, in a run's tables: where its rows are, and the rows when they are due.

The stage finds the places of a round's selected rollouts and of their scores, once, at one version
of each table. That is all it holds and all that ranks are given, who may be on other machines: each
reads its own examples of a step. Nothing but the update appends meanwhile, and versions of the last
hour stay in any case; only `Run.finish_round`, after it, removes any.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import polars as pl

from flows.stage import rows as round_rows
from flows.stage.typed_config import config_words
from opd_core.config.load import Config
from opd_core.types import GroundingExample, Policy, Rollout, TeacherScore, VideoOPDError
from opd_core.update.rows import Outline, OutlineOfScore, Trained
from storage.runs.run import Run
from storage.stages import stage_command
from storage.tables.lance_tables import PLACE_IN_TABLE, Tables

if TYPE_CHECKING:
    from flows.stage.prepare import Work

OUTLINES_AT_ONCE = 512
OF_ROLLOUT = (
    "rollout_id", "example_id", "policy_version", "policy_hash", "answered_by", "engine",
    "completion_token_ids", "sampling_logprobs", "student_iou", "predicted_start",
)  # fmt: skip
OF_SCORE = ("teacher_hash", "content_hash", "teacher_logprobs")
TOP_K = ("topk_token_ids", "topk_logprobs", "tail_logprobs")


class Place(NamedTuple):
    """Where a rollout is in `rollouts`, and its score in `teacher_scores`."""

    rollout_id: str
    rollout: int
    score: int | None


@dataclass(frozen=True)
class RowsOfTables:
    """A `TrainedRows`."""

    examples: Sequence[GroundingExample]
    tables: Path
    versions: Mapping[str, int]
    places: Mapping[str, tuple[Place, ...]]
    """By example id."""
    unread: tuple[str, ...]
    """Columns of `teacher_scores` that the objective does not need."""

    def rollout_ids(self, example_id: str) -> list[str]:
        return [place.rollout_id for place in self.places[example_id]]

    def outlines(self) -> Iterator[Outline]:
        for part in _parts(self._of(self.examples), OUTLINES_AT_ONCE):
            rows = self._columns("rollouts", [p.rollout for p in part], OF_ROLLOUT)
            scored = [p.score for p in part if p.score is not None]
            scores = self._columns("teacher_scores", scored, OF_SCORE).iter_rows()
            for place, row in zip(part, rows.iter_rows(named=True), strict=True):
                has_span = row.pop("predicted_start") is not None
                score = None if place.score is None else OutlineOfScore(*next(scores))
                yield Outline(**row, has_span=has_span, score=score)

    def read(self, examples: Sequence[GroundingExample], scores: bool = True) -> list[Trained]:
        tables, places = Tables.open(self.tables), list(self._of(examples))
        rollouts = tables.read_at(
            "rollouts", Rollout, [p.rollout for p in places], self.versions["rollouts"]
        )
        scored = [p.score for p in places if p.score is not None] if scores else []
        found = tables.read_at(
            "teacher_scores", TeacherScore, scored, self.versions["teacher_scores"], self.unread
        )
        return [self._trained(e, rollouts, found if scores else None) for e in examples]

    def _trained(
        self,
        example: GroundingExample,
        rollouts: Iterator[Rollout],
        scores: Iterator[TeacherScore] | None,
    ) -> Trained:
        """The example with its rollouts and scores, which come next. However many have answered a
        prompt, it is one object."""
        places = self.places[example.example_id]
        own: list[Rollout] = []
        for rollout in islice(rollouts, len(places)):
            same = own and own[0].prompt_token_ids == rollout.prompt_token_ids
            prompt = own[0].prompt_token_ids if same else rollout.prompt_token_ids
            own.append(replace(rollout, prompt_token_ids=prompt))
        of_own = [None if p.score is None or scores is None else next(scores) for p in places]
        return Trained(example, tuple(own), tuple(of_own))

    def _columns(self, table: str, places: Sequence[int], columns: Sequence[str]) -> pl.DataFrame:
        if not places:
            return pl.DataFrame()
        return Tables.open(self.tables).take(table, places, columns, self.versions[table])

    def _of(self, examples: Iterable[GroundingExample]) -> Iterator[Place]:
        return (place for e in examples for place in self.places[e.example_id])


def trained_rows(work: Work, policy: Policy) -> RowsOfTables:
    """Those that focus selected in the round. Raises `VideoOPDError` where there are none, where an
    example is annotated no more, and where a score is missing that is needed."""
    versions = work.run.table_versions()
    run = work.run.frozen(versions)
    selected = _selected(run, policy)
    if selected.is_empty():
        raise VideoOPDError(
            f"round {policy.round} has no selected rollouts; run the focus stage first"
        )
    columns = ("rollout_id", "example_id", "sample_index")
    rollouts = run.places("rollouts", columns, policy.version)
    rollouts = rollouts.join(selected, on="rollout_id", how="semi", maintain_order="left")
    if lost := round_rows.gone(work, policy) & set(rollouts["example_id"]):
        raise VideoOPDError(
            f"{len(lost)} examples of round {policy.round} that were selected are no longer in "
            f"{work.config.data.train.name}, {min(lost)} among them; choose again with "
            f"`{stage_command('focus', config_words(work.run), policy.round, force=True)}`"
        )
    scores = _places_of_scores(work, run, policy)
    if round_rows.needs_scores(work) and (unscored := set(selected["rollout_id"]) - scores.keys()):
        raise VideoOPDError(
            f"{len(unscored)} selected rollouts of round {policy.round} have no score of teacher "
            f"{work.teachers.names}, {min(unscored)} among them; put back the "
            "teacher that the round was selected with, or start a new run"
        )
    places: dict[str, tuple[Place, ...]] = {}
    found = rollouts.sort("sample_index", maintain_order=True)
    for rollout_id, example_id, _, place in found.iter_rows():
        one = Place(rollout_id, place, scores.get(rollout_id))
        places[example_id] = (*places.get(example_id, ()), one)
    examples = [e for e in round_rows.drawn(work, policy) if e.example_id in places]
    return RowsOfTables(examples, run.tables.folder, versions, places, _unread(work.config))


def _selected(run: Run, policy: Policy) -> pl.DataFrame:
    rows = run.selections().filter(round_rows.of_round(policy) & pl.col("selected"))
    return rows.select("rollout_id").collect()


def _places_of_scores(work: Work, run: Run, policy: Policy) -> dict[str, int]:
    """Rollout id -> place of its score; none where neither objective nor selection needs them."""
    if not round_rows.needs_scores(work):
        return {}
    rows = run.places("teacher_scores", ("rollout_id", "teacher_hash"), policy.version)
    own = rows.filter(work.teachers.scores())
    return dict(own.select("rollout_id", PLACE_IN_TABLE).iter_rows())


def _unread(config: Config) -> tuple[str, ...]:
    if not config.needs_teacher_distribution:
        return (*TOP_K, "hidden_states")
    return TOP_K if config.update.teacher_distribution == "hidden_states" else ("hidden_states",)


def _parts(places: Iterable[Place], size: int) -> Iterator[list[Place]]:
    part: list[Place] = []
    for place in places:
        part.append(place)
        if len(part) == size:
            yield part
            part = []
    if part:
        yield part
