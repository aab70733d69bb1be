"""What the page of a rollout is made of, beside the views that people ask in SQL."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import polars as pl
import pytest

from flows.run_tokenizer import texts_of
from flows.view import time_axis
from flows.view.answers import answers
from flows.view.trajectory import beside, trajectory
from opd_core.types import Span, TeacherScore, join_hashes
from storage.runs.run import Run
from tests.storage.storage_factories import new_run, rollout, score, update


@pytest.fixture(scope="module")
def run(finished: Path) -> Run:
    return Run.open(finished.with_name("tiny"))


def test_every_rollout_is_told_as_the_views_have_it(run: Run) -> None:
    rows = run.trajectories().collect().to_dicts()
    tokens = run.tokens(texts_of(run)).collect()
    assert rows
    for row in rows:
        told = trajectory(run, row["rollout_id"], texts_of(run))
        assert told is not None and told.example is not None
        assert (told.example.query, told.example.span.start) == (row["query"], row["span_start"])
        assert told.is_trained == row["trained"]
        assert told.selection is not None and told.selection.reason == row["reason"]
        own = tokens.filter(pl.col("rollout_id") == row["rollout_id"])
        for column, name in (("token_id", "id"), ("text", "text"),
                             ("sampling_logprob", "sampling"), ("student_logprob", "student"),
                             ("teacher_logprob", "teacher")):  # fmt: skip
            assert own[column].to_list() == [getattr(token, name) for token in told.tokens], column
        same = [r for r in rows if r["example_id"] == row["example_id"]]
        assert [a.rollout_id for a in told.answers if a.rollout_id] == sorted(
            (r["rollout_id"] for r in same), key=lambda i: (int(i[1:].split("-")[0]), i)
        )
        kl = {r["rollout_id"]: r["reverse_kl"] for r in same}
        for answer in told.answers:
            if answer.rollout_id is not None:
                assert answer.reverse_kl == pytest.approx(kl[answer.rollout_id], abs=1e-5)
        asked = run.teacher_predictions().filter(pl.col("example_id") == row["example_id"])
        assert len(told.predictions) == asked.collect().height
    assert trajectory(run, "v0-nobody-0", None) is None


@pytest.mark.parametrize("is_committed", [True, False])
def test_of_several_teachers_each_rollout_has_its_own_as_in_the_view(
    tmp_path: Path, is_committed: bool
) -> None:
    run = new_run(tmp_path)
    one, two, other = run.teacher_hash, "2" * 64, "3" * 64
    if not is_committed:
        two = other  # before the update the run's counts, whoever else has scored a rollout
    rows = [rollout(index) for index in range(4)]
    run.append("rollouts", rows, policy_version=0)
    for row, teachers in zip(rows, ([one], [two], [one, two], []), strict=True):
        for place, teacher in enumerate([other, *teachers] if is_committed else teachers):
            length = len(row.completion_token_ids)
            absent = dict.fromkeys(("topk_token_ids", "topk_logprobs", "tail_logprobs",
                                    "teacher_entropies", "hidden_states"))  # fmt: skip
            made = score(
                0, rollout_id=row.rollout_id, policy_version=0, teacher_hash=teacher,
                teacher_logprobs=tuple([-0.5 - place] * length), **absent,
            )  # fmt: skip
            run.append("teacher_scores", [made], policy_version=0)
    if is_committed:
        run.append("updates", [update(1, teacher_hash=join_hashes([one, two]))], policy_version=0)
    else:
        run.append("teacher_scores", [made_again(made, rows[3].rollout_id, one)], policy_version=0)
    view = {row["rollout_id"]: row for row in run.trajectories().collect().to_dicts()}
    known = []
    for row in rows:
        told = trajectory(run, row.rollout_id, None)
        assert told is not None
        expected = view[row.rollout_id]["teacher_logprobs"]
        assert (None if told.score is None else list(told.score.teacher_logprobs)) == (
            None if expected is None else pytest.approx(expected)
        )
        (answer,) = (a for a in told.answers if a.rollout_id == row.rollout_id)
        assert answer.reverse_kl == pytest.approx(view[row.rollout_id]["reverse_kl"], abs=1e-5)
        known.append(told.score is not None)
    assert known == ([True, True, False, False] if is_committed else [True, False, True, True])


def made_again(made: TeacherScore, rollout_id: str, teacher: str) -> TeacherScore:
    return replace(made, rollout_id=rollout_id, teacher_hash=teacher)


def test_evaluations_stand_among_the_answers_to_their_example(run: Run) -> None:
    row = run.evaluations().sort("policy_version").collect().to_dicts()[0]
    told = answers(run, row["example_id"], texts_of(run))
    assert [a.policy_version for a in told] == [0, 1, 2]
    assert all(a.by == "evaluation" and a.rollout_id is None for a in told)
    assert told[0].text == row["text"] and told[0].iou == row["iou"]


def test_those_before_and_after_are_of_the_same_policy_in_order_of_id(run: Run) -> None:
    ids = run.rollouts().select("rollout_id").collect()["rollout_id"].sort().to_list()
    for version in (0, 1):
        mine = [i for i in ids if i.startswith(f"v{version}-")]
        assert beside(run, mine[0]) == (None, mine[1])
        assert beside(run, mine[1]) == (mine[0], mine[2])
        assert beside(run, mine[-1]) == (mine[-2], None)


def test_what_lies_outside_of_the_video_ends_at_its_ends() -> None:
    (bar,) = time_axis.bars([Span(10.0, 30.0)], 20.0)
    assert (bar.x, bar.width, bar.end) == (50.0, 50.0, 30.0)
    (bar,) = time_axis.bars([Span(25.0, 30.0)], 20.0)
    assert bar.x == 100.0 and bar.width > 0


@pytest.mark.parametrize("duration", [0.1, 0.9, 12.0, 59.9, 61.0, 3599.0, 90_000.0])
def test_an_axis_has_a_few_marks(duration: float) -> None:
    marks = time_axis.ticks(duration)
    assert 2 <= len(marks) <= time_axis.MOST_TICKS + 1
    assert marks[0] == (0.0, "0") and marks[-1][0] <= 100.0
    assert len({label for _, label in marks}) == len(marks)
