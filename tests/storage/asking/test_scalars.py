"""What is kept of the view `trajectories` is that view, whatever became of the run."""

from __future__ import annotations

import random
from itertools import chain
from pathlib import Path
from typing import Any

import polars as pl
import pytest
from polars.testing import assert_frame_equal

from opd_core.types import GroundingExample, Selection, Span, TeacherPrediction, TrainedRollout
from storage.asking import scalars as module
from storage.asking.query import query
from storage.asking.scalars import ROW, scalars, standing_in
from storage.runs.run import Run
from tests.storage.storage_factories import new_run, rollout, score, selection, update

TEACHER, OTHER = "t" * 64, "o" * 64
EXAMPLES = 12


def sampled(draw: random.Random, index: int, version: int) -> Any:
    count = draw.randint(1, 4)
    truth = draw.random() < 0.2
    return rollout(
        index, version,
        completion_token_ids=tuple(range(count)), student_iou=draw.random(),
        sampling_logprobs=None if truth else tuple(-draw.random() for _ in range(count)),
        answered_by="truth" if truth else draw.choice(["student", "base"]),
        finish_reason=draw.choice(["stop", "length"]),
        predicted_span=draw.choice([None, Span(1.0, 2.5)]),
        text=draw.choice(["the dog's -- run", "a; b", "Ärger"]),
    )  # fmt: skip


def scored(draw: random.Random, row: Any, teacher: str) -> Any:
    count = len(row.completion_token_ids)
    absent: dict[str, Any] = dict.fromkeys(("topk_token_ids", "topk_logprobs", "tail_logprobs"))
    return score(
        0, rollout_id=row.rollout_id, policy_version=row.policy_version, teacher_hash=teacher,
        teacher_logprobs=tuple(-draw.random() for _ in range(count)), **absent,
    )  # fmt: skip


def focused(draw: random.Random, row: Any, rank: int) -> Selection:
    taken = draw.random() < 0.5
    return selection(
        rollout_id=row.rollout_id, policy_version=row.policy_version, example_id=row.example_id,
        selected=taken, reason="selected" if taken else draw.choice(["teacher unknown", "no"]),
        disagreement=draw.choice([None, draw.uniform(-1, 1)]), rank=draw.choice([None, rank]),
        question_hash="asked",
    )  # fmt: skip


def answered(draw: random.Random, index: int, teacher: str, question: str) -> list[Any]:
    return [
        TeacherPrediction(
            f"{index:016x}", i, "t", teacher, question, "?", None, draw.random(), 1, "p", None
        )
        for i in range(draw.randint(0, 3))
    ]


def lived(folder: Path, seed: int, joined: bool = False) -> Run:
    """A run of two or three rounds, of which the last may be in progress, and one was run again."""
    draw = random.Random(seed)
    run = new_run(folder)
    run.append("examples", [
        GroundingExample(f"{i:016x}", f"{i}.mp4", 9.0, f"{draw.random()}", Span(1, 2), "s", "eval")
        for i in range(EXAMPLES) if draw.random() < 0.9
    ])  # fmt: skip
    for teacher in (TEACHER, OTHER):
        for question in ("asked", "otherwise"):
            rows = [answered(draw, index, teacher, question) for index in range(EXAMPLES)]
            run.append("teacher_predictions", list(chain.from_iterable(rows)))
    rounds = draw.randint(2, 3)
    for version in range(rounds):
        teacher = draw.choice([TEACHER, TEACHER, OTHER])

        def write(name: str, rows: list[Any], version: int = version) -> None:
            run.append(name, rows, policy_version=version)

        def stage_rows(version: int = version, teacher: str = teacher) -> None:
            rows = [sampled(draw, i, version) for i in range(EXAMPLES) if draw.random() < 0.8]
            draw.shuffle(rows)
            write("rollouts", rows)
            some = [r for r in rows if draw.random() < 0.7]
            draw.shuffle(some)
            for stage in ("score", "focus", "update"):
                run.begin(stage, version, lambda _: "c.toml").new_take()
            write("teacher_scores", [scored(draw, r, teacher) for r in some])
            write("teacher_scores", [scored(draw, r, "another") for r in rows[:3]])
            write("selections", [focused(draw, r, i) for i, r in enumerate(some)])
            write("trained_rollouts", [
                TrainedRollout(r.rollout_id, version, 0, (-0.5,)) for r in some[::2]
            ])  # fmt: skip

        stage_rows()
        if draw.random() < 0.5:
            run.begin("rollout", version, lambda _: "c.toml", force=True).new_take()
            stage_rows()
        if version + 1 < rounds or draw.random() < 0.5:
            of = f"{TEACHER}+{OTHER}" if joined else teacher
            run.append("updates", [update(version + 1, teacher_hash=of)], policy_version=version)
    return run


def the_same(run: Run) -> None:
    view = run.trajectories().collect()
    kept = scalars(run)
    whole = standing_in(kept, " ".join(view.columns))
    assert_frame_equal(whole.collect().drop(ROW), view, check_exact=True)
    left = [c for c in view.columns if c not in module.KEPT and c not in module._OF_ROLLOUTS
            and c not in module._OF_EXAMPLES]  # fmt: skip
    quick = standing_in(kept, " ".join(c for c in view.columns if c not in left)).collect()
    assert quick[ROW].to_list() == list(range(view.height))
    assert_frame_equal(
        quick.drop(ROW), view.drop(left), check_column_order=False, rel_tol=1e-15, abs_tol=1e-15
    )
    assert len(left) == 6
    for row, rollout_id in enumerate(view["rollout_id"]):
        assert kept.row_of(rollout_id) == row
    assert kept.row_of("v9-nobody-0") is None
    rows = pl.Series(list(range(view.height))[::-3], dtype=pl.UInt32)
    assert (
        kept.read(rows, ("rollout_id",))["rollout_id"].to_list()
        == view["rollout_id"].gather(rows).to_list()
    )
    ordered = sorted(view["rollout_id"])
    assert [ordered[i] for i in kept.places_by_id()] == view["rollout_id"].to_list()


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.in_turn(always=["False-0", "True-0"])
def test_what_is_kept_is_the_view(tmp_path: Path, seed: int, joined: bool) -> None:
    the_same(lived(tmp_path, seed, joined))


def test_an_empty_run_keeps_nothing(tmp_path: Path) -> None:
    kept = scalars(new_run(tmp_path))
    assert kept.frame.height == 0 and kept.row_of("v0-x-0") is None
    assert kept.places_by_id().to_list() == []


def test_batches_of_a_table_are_its_rows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("storage.tables.lance_tables.BATCH_ROWS", 3)
    monkeypatch.setattr("storage.asking.in_batches._TOGETHER", 2)
    run = lived(tmp_path, 3)
    parts = list(run.tables.batches("rollouts", ("rollout_id", "text")))
    assert len(parts) > 3
    every = run.scan("rollouts", superseded=True).select("rollout_id", "text").collect()
    assert pl.concat(parts).equals(every)
    assert run.tables.take("rollouts", [4, 0], ("text", "rollout_id")).equals(
        every.select("text", "rollout_id")[[4, 0]]
    )
    the_same(run)


def test_a_frozen_run_does_not_see_what_comes_after(tmp_path: Path) -> None:
    run = lived(tmp_path, 5)
    frozen, before = run.frozen(), run.trajectories().collect()
    kept = scalars(run)
    run.append("rollouts", [rollout(40, 0)], policy_version=0)
    run.begin("focus", 0, lambda _: "c.toml", force=True).new_take()
    now = run.trajectories().collect()
    assert now.height > before.height
    assert now["selected"].null_count() - 1 > before["selected"].null_count()
    assert frozen.trajectories().collect().equals(before)
    again = run.frozen(frozen.table_versions())
    assert again.trajectories().collect().equals(before)
    sql = "SELECT count(*) AS n FROM trajectories WHERE text IS NOT NULL"
    assert query(kept.run, sql, trajectories=standing_in(kept, sql)).item() == before.height


@pytest.mark.parametrize("stage", ["rollout", "score", "focus", "update"])
@pytest.mark.parametrize("version", [0, 1])
@pytest.mark.in_turn(always=["0-score"])
def test_what_a_rerun_has_superseded_is_not_kept(tmp_path: Path, stage: str, version: int) -> None:
    run = lived(tmp_path, 9)
    for at in range(version + 1):
        for earlier in ("rollout", "score", "focus", "update"):
            run.begin(earlier, at, lambda _: "c.toml", force=True).new_take()
            if (earlier, at) == (stage, version):
                break
    the_same(run)
