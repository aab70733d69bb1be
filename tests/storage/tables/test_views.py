from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from flows.cli import main
from flows.run_tokenizer import texts_of
from opd_core.tinyworld.world import World
from opd_core.types import (
    GroundingExample,
    Selection,
    Span,
    TeacherPrediction,
    TrainedRollout,
    VideoOPDError,
)
from storage.asking.query import query
from storage.audit.links import appended
from storage.runs.run import Run
from storage.tables import upkeep
from storage.tables.history import commits
from storage.tables.schemas import TABLES
from tests.storage.finished_run import finished_run
from tests.storage.storage_factories import new_run, one_of_each, rollout, score, update
from tests.storage.storage_factories import selection as a_selection

TEACHER = "t" * 64


def selection(index: int, selected: bool, version: int = 0) -> Selection:
    row = rollout(index, version)
    reason = "selected" if selected else "disagreement outside top k"
    return a_selection(
        rollout_id=row.rollout_id, policy_version=version, example_id=row.example_id,
        selected=selected, reason=reason, teacher_iou=0.75, student_iou=0.5, disagreement=0.25,
        rank=index, question_hash="asked",
    )  # fmt: skip


def met(index: int) -> TrainedRollout:
    return TrainedRollout(rollout(index).rollout_id, 0, 0, (-0.75, -0.5))


@pytest.fixture
def filled(run: Run) -> Run:
    """Round 0: three rollouts, two selected and scored, trained on. Round 1: one rollout so far."""
    examples = [
        GroundingExample(rollout(i).example_id, f"{i}.mp4", 9.0, "a dog", Span(1, 2), "s", "train")
        for i in range(3)
    ]
    run.append("examples", examples)
    predictions = [
        TeacherPrediction(
            examples[0].example_id, i, "t", teacher, question, "?", None, iou, 1, "p", None
        )
        for teacher, question, ious in (
            (TEACHER, "asked", (0.5, 1.0)),
            (TEACHER, "otherwise", (0.0, 0.0)),
            ("another", "asked", (0.0, 0.0)),
        )
        for i, iou in enumerate(ious)
    ]
    run.append("teacher_predictions", predictions)
    run.append("rollouts", [rollout(i) for i in range(3)])
    run.append("teacher_scores", [score(0), score(1), score(0, teacher_hash="another")])
    run.append("selections", [selection(0, True), selection(1, True), selection(2, False)])
    run.append("trained_rollouts", [met(0), met(1)])
    run.append("updates", [update(1, teacher_hash=TEACHER, rollouts=2)])
    run.finish_round(1)
    run.append("rollouts", [rollout(0, version=1)])
    return run


def test_a_trajectory_is_a_rollout_with_all_that_is_known_of_it(filled: Run) -> None:
    rows = filled.trajectories().collect().to_dicts()
    assert len(rows) == 4
    first = rows[0]
    assert first["query"] == "a dog" and first["split"] == "train" and first["duration"] == 9.0
    assert first["teacher_hash"] == TEACHER and first["teacher_iou"] == 0.75
    assert first["teacher_answers"] == 2 and first["teacher_logprobs"] == [-0.5, -1.5]
    assert first["reverse_kl"] == pytest.approx((-0.5 - 0.25) / 2 - (-0.5 - 1.5) / 2)
    assert [row["selected"] for row in rows] == [True, True, False, None]
    assert [row["trained"] for row in rows] == [True, True, False, False]
    assert [row["trained_in"] for row in rows] == [1, 1, None, None]


def test_a_round_without_update_has_the_teacher_that_scored_it_last(filled: Run) -> None:
    assert filled.trajectories().collect()["teacher_hash"][-1] == filled.teacher_hash
    scored = [score(0, policy_version=1, rollout_id=rollout(0, 1).rollout_id, teacher_hash="new")]
    filled.append("teacher_scores", scored)
    assert filled.trajectories().collect()["teacher_hash"][-1] == "new"


def test_of_a_round_with_several_teachers_a_rollout_has_its_own(filled: Run) -> None:
    """Who scored it; else the only one that has answered its example; else nobody is known."""
    filled.append("rollouts", [rollout(i, version=1) for i in (1, 2)])
    first = rollout(0, 1).rollout_id
    filled.append(
        "teacher_scores", [score(0, policy_version=1, rollout_id=first, teacher_hash="another")]
    )
    answer = TeacherPrediction(
        rollout(1, 1).example_id, 0, "t", "another", "asked", "?", None, 0.25, 1, "p", None
    )
    filled.append("teacher_predictions", [answer])
    filled.append("updates", [update(2, teacher_hash=f"{TEACHER}+another", rollouts=1)])
    rows = filled.trajectories().filter(policy_version=1).collect()
    assert rows["teacher_hash"].to_list() == ["another", "another", None]
    assert rows["teacher_iou"].to_list() == [0.0, 0.25, None]
    assert [row is not None for row in rows["teacher_logprobs"]] == [True, False, False]
    before = filled.trajectories().filter(policy_version=0).collect()
    assert set(before["teacher_hash"]) == {TEACHER}


def test_trained_is_what_a_committed_update_met(run: Run) -> None:
    run.append("rollouts", [rollout(i) for i in range(3)])
    run.append("selections", [selection(0, True), selection(1, True), selection(2, False)])
    run.append("trained_rollouts", [met(0)])
    assert run.trajectories().collect()["trained"].to_list() == [False, False, False]
    run.append("updates", [update(1, rollouts=1, stopped_early="the KL was too large")])
    assert run.trajectories().collect()["trained"].to_list() == [True, False, False]


def test_a_token_has_its_log_probs_and_its_text(filled: Run) -> None:
    rows = filled.tokens(lambda ids: [f"<{i}>" for i in ids]).collect()
    assert rows.height == 8
    first, second = rows.filter(rollout_id=rollout(0).rollout_id).to_dicts()
    assert (first["position"], second["position"]) == (0, 1)
    assert (first["token_id"], first["text"]) == (4, "<4>")
    assert second["sampling_logprob"] == -0.25 and second["teacher_logprob"] == -1.5
    assert second["student_logprob"] == -0.5
    assert second["advantage"] == -1.25 and second["trained"] and second["trained_in"] == 1
    unscored = rows.filter(rollout_id=rollout(2).rollout_id)
    assert unscored["advantage"].to_list() == unscored["student_logprob"].to_list() == [None] * 2
    assert unscored["sampling_logprob"].to_list() == [-0.5, -0.25]
    assert filled.tokens().collect()["text"].null_count() == 8


def test_an_empty_run_has_empty_views(run: Run) -> None:
    assert run.trajectories().collect().is_empty() and run.tokens().collect().is_empty()


def test_a_round_is_every_table_at_its_tag(filled: Run) -> None:
    then = Run.open(filled.path, round=1)
    assert then.rollouts().collect().height == then.trajectories().collect().height == 3
    assert then.read("rollouts", type(rollout())) == [rollout(i) for i in range(3)]
    assert query(then, "select count(*) from trajectories").item() == 3
    assert query(filled, "select count(*) from trajectories").item() == 4


def test_a_round_that_is_not_finished_is_named_with_those_that_are(filled: Run) -> None:
    with pytest.raises(VideoOPDError, match="has not finished round 2; give one of those.*: 1$"):
        Run.open(filled.path, round=2)
    filled.tables.tag("draws", "round-2")  # killed while it set the tags
    with pytest.raises(VideoOPDError, match="has not finished round 2"):
        Run.open(filled.path, round=2)
    assert filled.finished_rounds() == [1]


def test_a_run_without_rounds_says_so(tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match="has not finished round 1; .*: none yet"):
        Run.open(new_run(tmp_path).path, round=1)


@pytest.mark.parametrize(
    ("sql", "rows"),
    [
        ("select count(*) from trajectories where trained", [(2,)]),
        ("select trained, count(advantage) from tokens group by trained order by 1",
         [(False, 0), (True, 4)]),
        ("select text from tokens where position = 0 limit 1", [("<4>",)]),
        ("select count(*) from tokens t join rollouts r on t.rollout_id = r.rollout_id", [(8,)]),
    ],
)  # fmt: skip
def test_queries_know_the_views(filled: Run, sql: str, rows: list[tuple[int | str, ...]]) -> None:
    assert query(filled, sql, lambda ids: [f"<{i}>" for i in ids]).rows() == rows


def test_an_unknown_column_of_a_view_comes_with_the_known_ones(filled: Run) -> None:
    with pytest.raises(VideoOPDError, match="no column 'iou'; tokens has rollout_id, example_id"):
        query(filled, "select iou from tokens")
    with pytest.raises(VideoOPDError, match="no table 'token'; .*, trajectories, tokens"):
        query(filled, "select * from token")


def test_every_table_can_be_asked_as_of_a_round(filled: Run) -> None:
    for name, record in one_of_each().items():
        if name not in ("rollouts", "examples"):
            filled.append(name, [replace(record)], stage=TABLES[name].writer or "score")
    then = Run.open(filled.path, round=1)
    for name in one_of_each():
        assert getattr(then, name)().collect().height == filled.tables.scan(
            name, "round-1"
        ).collect().height  # fmt: skip


def test_a_real_run_names_its_tokens(
    tiny_world: World, tmp_path_factory: pytest.TempPathFactory, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path_factory.getbasetemp() / "finished"
    finished = finished_run(folder, tiny_world.videos.parent)
    run = Run.open(finished.run)
    rows = run.tokens(texts_of(run)).collect()
    assert rows["text"].null_count() == 0
    per_rollout = rows.group_by("rollout_id").agg("position", "token_id").rows()
    kept = dict(run.rollouts().select("rollout_id", "completion_token_ids").collect().rows())
    assert {name: ids for name, _, ids in per_rollout} == kept
    assert all(places == list(range(len(places))) for _, places, _ in per_rollout)
    assert rows.filter("trained")["advantage"].null_count() == 0
    sql = "select count(*) as n from tokens where text is not null"
    assert main(["query", f"{finished.run}@1", sql, "--format", "csv"]) == 0
    assert 0 < int(capsys.readouterr().out.split()[1]) < rows.height


def test_large_tables_are_indexed_and_answer_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INDEX_ABOVE_ROWS", 5)
    run.append("rollouts", [rollout(i) for i in range(4)])
    run.finish_round(1)
    assert not run.tables._dataset("rollouts").describe_indices()
    for number in (2, 3):
        run.append("rollouts", [rollout(i) for i in range(4 * number)])
        run.finish_round(number)
        assert len(run.tables._dataset("rollouts").describe_indices()) == 1
    run.append("rollouts", [rollout(99)])
    for index in (0, 7, 11, 99):
        wanted = f"select text from rollouts where rollout_id = '{rollout(index).rollout_id}'"
        assert query(run, wanted).height == 1
    assert run.append("rollouts", [rollout(i) for i in range(12)]) == 0


def test_examples_and_predictions_are_indexed_by_their_example(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "INDEX_ABOVE_ROWS", 5)
    for name in ("examples", "teacher_predictions"):
        one = one_of_each()[name]
        run.append(name, [replace(one, example_id=f"indexed-{i}") for i in range(8)])
    run.finish_round(1)
    for name in ("examples", "teacher_predictions"):
        (index,) = run.tables._dataset(name).describe_indices()
        assert index.field_names == ["example_id"]
        wanted = f"select example_id from {name} where example_id = 'indexed-3'"
        assert query(run, wanted).height == 1


def test_joined_and_indexed_in_parts_a_table_answers_the_same(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SIZES", (2, 8, 32))
    monkeypatch.setattr(upkeep, "JOIN_ABOVE", 1)
    monkeypatch.setattr(upkeep, "INDEX_ABOVE_ROWS", 3)
    for number in range(9):
        run.append("rollouts", [rollout(i) for i in range(2 * number + 2)])
        run.finish_round(number + 1)
    for number in (1, 4, 9):
        then = Run.open(run.path, round=number)
        for index in range(18):
            wanted = f"select text from rollouts where rollout_id = '{rollout(index).rollout_id}'"
            assert query(then, wanted).height == (index < 2 * number)
    operations = {commit.operation for commit in commits(run.tables.folder, "rollouts")}
    assert operations - {"BaseOperation"} == {"Overwrite", "Append", "Rewrite", "CreateIndex"}
    assert appended(run).count > 9


def test_fragments_of_a_size_are_joined_once_and_tags_keep_their_rows(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(upkeep, "SIZES", (2, 8, 32))
    monkeypatch.setattr(upkeep, "JOIN_ABOVE", 3)
    sizes = []
    for number in range(9):
        run.append("rollouts", [rollout(i) for i in range(2 * number + 2)])
        run.finish_round(number + 1)
        fragments = run.tables._dataset("rollouts").get_fragments()
        sizes.append([fragment.count_rows() for fragment in fragments])
    assert sizes[2:4] == [[2, 2, 2], [8]] and sizes[7:] == [[8, 8], [8, 8, 2]]
    kept = run.rollouts().select("rollout_id").collect()["rollout_id"].to_list()
    assert kept == [rollout(i).rollout_id for i in range(18)]
    for number in (1, 4, 9):
        then = Run.open(run.path, round=number)
        assert then.rollouts().collect().height == 2 * number
        wanted = f"select count(*) from rollouts where rollout_id = '{rollout(1).rollout_id}'"
        assert query(then, wanted).item() == 1
