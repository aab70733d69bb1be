"""Numbers of a run: against plain Python over its rows, and against what other commands say."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import pytest

from flows import stages as round_stages
from flows.evaluation.answers import of_policy
from flows.evaluation.groups import groups, numbers
from flows.numbers import rounds as of_rounds
from flows.numbers import stages as of_stages
from flows.numbers import steps as of_steps
from flows.stage.costs import COSTS_FILE
from flows.stage.prepare import opened
from storage.runs.run import Run
from storage.stages import STAGES
from tests.storage.finished_run import Finished, write_config


def rows(run: Run, table: str) -> list[dict[str, Any]]:
    return run.scan(table).collect().to_dicts()


def test_columns_are_described_and_there(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    for module, made in (
        (of_rounds, of_rounds.rounds(run)),
        (of_steps, of_steps.steps(run)),
        (of_stages, of_stages.stages(run)),
    ):
        assert list(made.columns) == list(module.columns())
        assert all(module.columns().values())


def test_a_policys_metrics_are_those_of_evaluate(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    frame = of_rounds.rounds(run)
    assert frame["policy_version"].to_list() == [0, 1, 2]
    for row in frame.to_dicts():
        (every,) = groups(of_policy(run, row["policy_version"]))
        expected = numbers(every)
        assert row["eval_examples"] == every.examples > 0
        assert expected == pytest.approx({name: row[name] for name in expected}, abs=1e-12)
        assert row["strict_miou_low"] <= row["strict_miou"] <= row["strict_miou_high"]


def test_a_rounds_numbers_are_those_of_its_rows(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    frame = {row["policy_version"]: row for row in of_rounds.rounds(run).to_dicts()}
    scores = {row["rollout_id"]: row["teacher_logprobs"] for row in rows(run, "teacher_scores")}
    base = frame[0]
    assert base["rollouts"] is None and base["teacher_kl"] is None and base["selected"] is None
    for version in (1, 2):
        row = frame[version]
        answers = [r for r in rows(run, "rollouts") if r["policy_version"] == version - 1]
        lengths = [len(r["completion_token_ids"]) for r in answers]
        gaps = [
            ours - theirs
            for r in answers
            if r["rollout_id"] in scores
            for ours, theirs in zip(r["sampling_logprobs"], scores[r["rollout_id"]], strict=True)
        ]
        ious: dict[str, list[float]] = {}
        for r in answers:
            ious.setdefault(r["example_id"], []).append(r["student_iou"])
        assert row["rollouts"] == len(answers) > 0
        assert row["sampled_tokens"] == sum(lengths)
        assert (row["min_length"], row["max_length"]) == (min(lengths), max(lengths))
        assert row["mean_length"] == pytest.approx(mean(lengths))
        assert row["mean_iou"] == pytest.approx(mean(r["student_iou"] for r in answers))
        groups_of = [group for group in ious.values() if len(group) > 1]
        assert row["iou_std"] == pytest.approx(mean(stdev(group) for group in groups_of))
        assert row["teacher_kl"] == pytest.approx(mean(gaps), rel=1e-5)
        assert row["scored_tokens"] == len(gaps)
        selections = [s for s in rows(run, "selections") if s["policy_version"] == version - 1]
        assert row["selected"] == sum(s["selected"] for s in selections) > 0
        gap = [s["disagreement"] for s in selections if s["disagreement"] is not None]
        assert row["disagreement"] == pytest.approx(mean(gap))
        update = next(u for u in rows(run, "updates") if u["policy_version"] == version)
        assert row["trained_rollouts"] == update["rollouts"]
        assert row["committed_at"] == update["written_at"]


def test_reasons_are_counted(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    expected = Counter((s["policy_version"] + 1, s["reason"]) for s in rows(run, "selections"))
    made = of_rounds.reasons(run).to_dicts()
    assert {(r["policy_version"], r["reason"]): r["rollouts"] for r in made} == dict(expected)


def test_one_policy_alone_has_the_same_numbers(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    every = of_rounds.rounds(run).to_dicts()
    for version in (0, 1, 2):
        assert of_rounds.rounds(run, only=version).to_dicts() == [every[version]]


def test_as_of_a_round_it_is_what_it_was(two_rounds: Finished) -> None:
    now = of_rounds.rounds(Run.open(two_rounds.run)).to_dicts()
    then = Run.open(two_rounds.run, 1)
    assert of_rounds.rounds(then).to_dicts() == now[:2]
    assert set(of_steps.steps(then)["policy_version"]) == {1}
    assert set(of_stages.stages(then)["round"]) == {0, 1}


def test_steps_are_those_of_the_updates(two_rounds: Finished) -> None:
    run = Run.open(two_rounds.run)
    frame = of_steps.steps(run)
    expected = [
        (update["policy_version"], step["step"], step["loss"], step["reverse_kl"])
        for update in rows(run, "updates")
        for step in update["steps"]
    ]
    columns = ("policy_version", "step", "loss", "teacher_kl")
    assert frame.select(columns).rows() == expected
    assert frame["run_step"].to_list() == list(range(len(expected)))
    assert not frame["running"].any()


def test_every_stage_of_a_round_took_something(two_rounds: Finished, tmp_path: Path) -> None:
    run = Run.open(two_rounds.run)
    frame = of_stages.stages(run)
    names = frame.filter(round=2)["stage"].to_list()
    assert names == [name for name in STAGES if name != "evaluate"] or names == list(STAGES)
    assert frame["seconds"].min() > 0  # type: ignore[operator]
    assert frame["cpu_seconds"].is_null().all() and not (run.path / COSTS_FILE).exists()
    counts = dict(frame.filter(round=2).select("stage", "rows").iter_rows())
    assert counts["rollout"] == sum(r["policy_version"] == 1 for r in rows(run, "rollouts"))
    assert counts["validate"] is None, "its rows are of no round"


def test_recorded_cpu_seconds_of_a_stage_are_added_up(two_rounds: Finished, tmp_path: Path) -> None:
    shutil.copytree(two_rounds.run, tmp_path / "counted")
    line = '{"policy_version": 1, "stage": "score", "seconds": 2.0, "cpu_seconds": 1.5, '
    line += '"tokens": 3, "attempt": "a"}\n'
    (tmp_path / "counted" / COSTS_FILE).write_text(line * 2 + line[:20])
    frame = of_stages.stages(Run.open(tmp_path / "counted"))
    assert frame.filter(stage="score", round=2)["cpu_seconds"].to_list() == [3.0]


def test_numbers_are_those_in_force_after_a_rerun(two_rounds: Finished, tmp_path: Path) -> None:
    shutil.copytree(two_rounds.run, tmp_path / "counted")
    config = write_config(two_rounds.config.parent, two_rounds.world, tmp_path / "counted")
    before = of_rounds.rounds(Run.open(tmp_path / "counted")).to_dicts()
    with opened(str(config), ["focus.top_k=3"]) as work:
        for name in ("focus", "update"):
            stage = getattr(round_stages, name)
            stage.fn(work, work.policy_at(name, 1), force=name == "focus")
    after = of_rounds.rounds(Run.open(tmp_path / "counted")).to_dicts()
    assert [row["policy_version"] for row in after] == [0, 1], "policy 2 stood on it"
    assert after[1]["selected"] == 6 < before[1]["selected"]
    assert after[1]["trained_rollouts"] == 6
    assert after[1]["teacher_kl"] == before[1]["teacher_kl"]
    assert after[1]["eval_examples"] is None, "it has answered nothing yet"
    assert of_rounds.rounds(Run.open(tmp_path / "counted", 2)).to_dicts() == before
    assert set(of_stages.stages(Run.open(tmp_path / "counted"))["round"]) <= {0, 1}
