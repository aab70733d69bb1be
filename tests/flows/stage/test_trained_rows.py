"""What an update trains on is read from the tables a step at a time, and is what they hold."""

from __future__ import annotations

import gc
import pickle
import shutil
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import polars as pl
import pyarrow as pa
import pytest

from flows import stages
from flows.stage import trained_rows as module
from flows.stage.prepare import opened
from flows.stage.trained_rows import RowsOfTables, trained_rows
from opd_core.types import Draw, GroundingExample, Rollout, Selection, TeacherScore
from opd_core.update.rows import HeldRows, Outline, Trained
from storage.runs.run import Run
from storage.tables import lance_tables
from storage.tables.lance_tables import Tables
from storage.tables.records import from_rows
from tests.flows.conftest import WriteConfig
from tests.stages_before import stages_before

ROUND = {
    "update.objective": "exact_reverse_kl",
    "update.examples_per_step": 2,
    "rollout.examples_per_round": 12,
    "rollout.rollouts_per_example": 3,
    "focus.curriculum": "uniform",
    "score.teacher_entropy": True,
    "evaluate.max_examples": 1,
}


@pytest.fixture(scope="module")
def before_update(write_config: WriteConfig, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The config of a run whose first round lacks its update and what follows."""
    config = write_config(tmp_path_factory.mktemp("before-update"), ROUND)
    with opened(str(config)) as work:
        for name in stages_before("update"):
            getattr(stages, name).fn(work, work.policy())
    return config


@pytest.fixture
def copied(before_update: Path, write_config: WriteConfig, tmp_path: Path) -> Callable[..., Path]:
    def copy(**changes: object) -> Path:
        shutil.copytree(before_update.with_name("run"), tmp_path / "run")
        return write_config(tmp_path, ROUND | changes)

    return copy


def rows_of(config: Path) -> RowsOfTables:
    with opened(str(config)) as work:
        return trained_rows(work, work.policy())


def all_read(config: Path) -> HeldRows:
    """The same from all rows of the tables, as one reads them who has the memory."""
    run = Run.open(config.with_name("run"))
    scores = {s.rollout_id: s for s in run.read("teacher_scores", TeacherScore)}
    taken = {s.rollout_id for s in run.read("selections", Selection) if s.selected}
    examples = {e.example_id: e for e in run.read("examples", GroundingExample)}
    answers: dict[str, list[Rollout]] = {}
    for rollout in sorted(run.read("rollouts", Rollout), key=lambda r: r.sample_index):
        if rollout.rollout_id in taken:
            answers.setdefault(rollout.example_id, []).append(rollout)
    drawn = sorted(run.read("draws", Draw), key=lambda draw: draw.position)
    return HeldRows(
        [
            Trained(examples[d.example_id], tuple(rows), tuple(scores[r.rollout_id] for r in rows))
            for d in drawn
            if (rows := answers.get(d.example_id))
        ]
    )


def as_told(outline: Outline) -> Outline:
    """With lists as tuples."""
    score, logprobs = outline.score, outline.sampling_logprobs
    return replace(
        outline,
        completion_token_ids=tuple(outline.completion_token_ids),
        sampling_logprobs=None if logprobs is None else tuple(logprobs),
        score=score and replace(score, teacher_logprobs=tuple(score.teacher_logprobs)),
    )


def without(trained: Sequence[Trained], *columns: str) -> list[Trained]:
    nothing = dict.fromkeys(columns)
    return [
        replace(t, scores=tuple(s and replace(s, **nothing) for s in t.scores))  # type: ignore[arg-type]
        for t in trained
    ]


def assert_same(ours: RowsOfTables, held: HeldRows) -> None:
    assert list(ours.examples) == list(held.examples)
    assert [as_told(o) for o in ours.outlines()] == [as_told(o) for o in held.outlines()]
    some = [*ours.examples[5:], *ours.examples[:2]]
    assert ours.read(some) == held.read(some)
    assert ours.read(ours.examples) == held.work
    for one in held.work:
        ids = [rollout.rollout_id for rollout in one.rollouts]
        assert list(ours.rollout_ids(one.example.example_id)) == ids
    assert all(score is None for t in ours.read(some, scores=False) for score in t.scores)


@pytest.mark.parametrize("at_once", [1, 4, 1000])
def test_what_is_read_is_what_the_tables_hold(
    before_update: Path, monkeypatch: pytest.MonkeyPatch, at_once: int
) -> None:
    monkeypatch.setattr(lance_tables, "RECORDS_AT_ONCE", at_once)
    monkeypatch.setattr(module, "OUTLINES_AT_ONCE", at_once)
    ours: RowsOfTables = pickle.loads(pickle.dumps(rows_of(before_update)))
    assert len(ours.examples) == 12
    assert_same(ours, all_read(before_update))
    (first, *_) = ours.read(ours.examples[:1])
    prompts = {id(rollout.prompt_token_ids) for rollout in first.rollouts}
    assert len(prompts) == 1, "a prompt is there once, however many have answered it"


def test_superseded_rows_are_not_read(copied: Callable[..., Path]) -> None:
    config = copied()
    older = rows_of(config)
    with opened(str(config)) as work:
        stages.score.fn(work, work.policy(), force=True)
        stages.focus.fn(work, work.policy())
    ours, held = rows_of(config), all_read(config)
    assert_same(ours, held)
    scores = {place.score for places in ours.places.values() for place in places}
    assert scores.isdisjoint(p.score for places in older.places.values() for p in places)
    assert older.read(older.examples[:1])[0].scores[0] is not None, "its version is still there"


@pytest.mark.parametrize(
    ("objective", "unread"),
    [
        ("exact_reverse_kl", {"hidden_states"}),
        ("policy_gradient", {"topk_token_ids", "topk_logprobs", "tail_logprobs", "hidden_states"}),
    ],
)
def test_of_the_teacher_is_read_what_the_objective_needs(
    copied: Callable[..., Path], objective: str, unread: set[str]
) -> None:
    config = copied(**{"update.objective": objective})
    ours = rows_of(config)
    assert set(ours.unread) == unread
    assert ours.read(ours.examples) == without(all_read(config).work, *unread)


@pytest.mark.in_turn
def test_an_update_has_the_rows_of_one_step_at_a_time(
    copied: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Counted are all records that this process holds, whoever holds them."""
    config = copied(**{"update.epochs": 2, "update.objective": "policy_gradient",
                       "update.tis": "token"})  # fmt: skip
    monkeypatch.setattr(lance_tables, "RECORDS_AT_ONCE", 4)
    monkeypatch.setattr(module, "OUTLINES_AT_ONCE", 4)
    read, take = RowsOfTables.read, Tables.take
    steps: list[tuple[bool, int, int]] = []
    at_once: list[int] = []

    def alive() -> int:
        gc.collect()
        return sum(type(one) in (Rollout, TeacherScore, Outline) for one in gc.get_objects())

    def counted_read(
        self: RowsOfTables, examples: Sequence[GroundingExample], scores: bool = True
    ) -> list[Trained]:
        rows = read(self, examples, scores)
        own = sum(len(t.rollouts) + len([s for s in t.scores if s]) for t in rows)
        steps.append((scores, own, alive() - before))
        return rows

    def counted_take(
        self: Tables, name: str, places: Sequence[int], columns: Sequence[str], version: int
    ) -> pl.DataFrame:
        at_once.append(len(places))
        return take(self, name, places, columns, version)

    def counted_records(kind: type[Rollout], rows: pa.Table) -> list[Rollout]:
        if kind in (Rollout, TeacherScore):
            at_once.append(rows.num_rows)
        return from_rows(kind, rows)

    monkeypatch.setattr(RowsOfTables, "read", counted_read)
    monkeypatch.setattr(Tables, "take", counted_take)
    monkeypatch.setattr(lance_tables, "from_rows", counted_records)
    with opened(str(config)) as work:
        before = alive()
        done = stages.update.fn(work, work.policy())
        made = work.run.updates().collect()["steps"][0].to_list()
    assert len(made) == done.items > 4 and sum(step["rollouts"] for step in made) == 2 * 36
    with_scores = [own for scores, own, _ in steps if scores]
    assert with_scores == [2 * step["rollouts"] for step in made]
    assert len(steps) > len(made), "what later steps train on was run before the first"
    assert [in_memory for _, _, in_memory in steps] == [own for _, own, _ in steps]
    assert max(at_once) == 4 and sum(at_once) > 4 * 36
