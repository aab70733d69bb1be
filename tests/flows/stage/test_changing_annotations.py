"""A run draws and evaluates what its annotation files hold now, and keeps what they held before."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from flows import stages
from flows.audit.walk import Depth, audit
from flows.commands.show import show
from flows.commands.status import print_status
from flows.console import report
from flows.stage.prepare import opened
from opd_core.types import VideoOPDError, make_rollout_id
from storage.runs.run import Run
from tests.flows.annotation_files import annotate, drawn, row, write_videos
from tests.flows.conftest import WriteConfig
from tests.flows.kill_points import run_without_server

NAMES = ("a.mp4", "b.mp4", "c.mp4")
OLD = {name: [(f"one of {name}", 0, 2), (f"two of {name}", 1, 4)] for name in NAMES}
EVAL = [("end of a", 2, 5), ("end of a again", 3, 5)]


@pytest.fixture(scope="module")
def videos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_videos(tmp_path_factory.mktemp("videos"), *NAMES)


def written(write_config: WriteConfig, folder: Path, videos: Path) -> Path:
    """A config whose annotation files lie beside it."""
    write(folder, OLD)
    annotate(folder / "eval.jsonl", row("a.mp4", *EVAL))
    settings = {
        "data.videos": videos,
        "data.train": folder / "train.jsonl",
        "data.eval": folder / "eval.jsonl",
        "focus.curriculum": "uniform",
        "rollout.examples_per_round": 20,
    }
    return write_config(folder, settings)


@pytest.fixture
def config(write_config: WriteConfig, tmp_path: Path, videos: Path) -> Path:
    return written(write_config, tmp_path, videos)


@pytest.fixture(scope="module")
def first_round(
    write_config: WriteConfig, videos: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The run after one round."""
    folder = tmp_path_factory.mktemp("first")
    run_without_server(str(written(write_config, folder, videos)))
    return folder / "run"


@pytest.fixture
def after_a_round(config: Path, first_round: Path, tmp_path: Path) -> Path:
    """The config, and beside it a run of one round."""
    shutil.copytree(first_round, tmp_path / "run")
    return config


def write(folder: Path, events: dict[str, Any]) -> None:
    annotate(folder / "train.jsonl", *(row(name, *some) for name, some in events.items() if some))


def changes(folder: Path) -> list[tuple[int, str, str | None]]:
    """(sequence, change, split) of what became of examples, sorted."""
    rows = Run.open(folder / "run").data_changes().collect()
    return sorted(rows.select("sequence", "change", "split").rows(), key=str)


def holds(folder: Path) -> None:
    """The audit finds every link whole."""
    broken = [v for v in audit(Run.open(folder / "run"), Depth()) if v.broken]
    assert not broken, broken


@pytest.mark.in_turn
def test_removed_and_corrected_annotations_are_no_longer_drawn(
    after_a_round: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert drawn(tmp_path / "run", 1) == {q for some in OLD.values() for q, *_ in some}
    assert changes(tmp_path) == []
    write(tmp_path, {
        "a.mp4": OLD["a.mp4"],
        "b.mp4": [("one of b.mp4", 0.5, 2.5)],
        "c.mp4": [*OLD["c.mp4"], ("three of c.mp4", 2, 3)],
    })  # fmt: skip
    summary = run_without_server(str(after_a_round))
    run = Run.open(tmp_path / "run")
    second = run.draws().filter(policy_version=1).collect()
    spans = run.examples().collect().filter(query="one of b.mp4")
    old, new = spans.sort("span_start")["example_id"]
    assert new in second["example_id"] and old not in second["example_id"]
    assert drawn(tmp_path / "run", 2) == {
        "one of a.mp4", "two of a.mp4", "one of b.mp4", "one of c.mp4", "two of c.mp4",
        "three of c.mp4",
    }  # fmt: skip
    assert "annotations: 2 came, 2 went" in summary.rounds[-1].notes
    assert run.rollouts().collect().filter(example_id=old).height == 2, "kept as evidence"
    assert changes(tmp_path) == [
        (1, "added", "train"), (1, "added", "train"), (1, "removed", None), (1, "removed", None),
    ]  # fmt: skip
    holds(tmp_path)
    print_status(run)
    told = capsys.readouterr().out
    assert "6 train and 2 eval examples; 2 that are no longer annotated are kept" in told
    write(tmp_path, OLD)
    run_without_server(str(after_a_round))
    assert drawn(tmp_path / "run", 3) == {q for some in OLD.values() for q, *_ in some}
    assert [c for s, c, _ in changes(tmp_path) if s == 2] == [
        "removed", "removed", "returned", "returned",
    ]  # fmt: skip
    holds(tmp_path)


@pytest.mark.parametrize("after", ["draw", "rollout", "focus"])
@pytest.mark.in_turn(always=["rollout"])
def test_what_is_removed_in_the_middle_of_a_round_is_not_trained_on(
    config: Path, tmp_path: Path, after: str
) -> None:
    """The draw stays what it was; the stages that are still to come leave it out."""
    order = ("draw", "rollout", "score", "focus")
    with opened(str(config)) as work:
        for name in order[: order.index(after) + 1]:
            getattr(stages, name).fn(work, work.policy())
    write(tmp_path, OLD | {"b.mp4": []})
    summary = run_without_server(str(config))
    run = Run.open(tmp_path / "run")
    assert len(drawn(tmp_path / "run", 1)) == 6
    gone = set(run.examples().collect().filter(video_path="b.mp4")["example_id"])
    ids = {make_rollout_id(0, example, index) for example in gone for index in (0, 1)}
    sampled = set(run.rollouts().collect()["rollout_id"])
    assert (sampled & ids == set()) == (after == "draw")
    assert not set(run.trained_rollouts().collect()["rollout_id"]) & ids
    assert run.updates().collect()["rollouts"].to_list() == [8]
    chosen = run.selections().collect()
    left = chosen.filter(~chosen["selected"])
    assert set(left["rollout_id"]) == (set() if after == "draw" else ids)
    assert set(left["reason"]) <= {"no longer annotated"}
    assert "2 went" in "".join(summary.rounds[-1].notes)
    holds(tmp_path)


def test_an_update_of_a_selection_that_has_lost_examples_names_the_way_on(
    config: Path, tmp_path: Path
) -> None:
    with opened(str(config)) as work:
        for name in ("draw", "rollout", "score", "focus"):
            getattr(stages, name).fn(work, work.policy())
    write(tmp_path, OLD | {"b.mp4": []})
    with opened(str(config)) as work:
        with pytest.raises(VideoOPDError, match=r"2 examples .* no longer in train\.jsonl.*focus"):
            stages.update.fn(work, work.policy())
        stages.focus.fn(work, work.policy(), force=True)
        stages.update.fn(work, work.policy())
    holds(tmp_path)


@pytest.mark.in_turn
def test_what_moves_to_the_eval_split_is_never_trained_on_again(
    after_a_round: Path, tmp_path: Path
) -> None:
    write(tmp_path, OLD)  # still there, and in the eval split too
    annotate(tmp_path / "eval.jsonl", row("a.mp4", *EVAL), row("b.mp4", *OLD["b.mp4"]))
    summary = run_without_server(str(after_a_round))
    assert not drawn(tmp_path / "run", 2) & {"one of b.mp4", "two of b.mp4"}
    assert [c for _, c, _ in changes(tmp_path)] == ["moved", "moved"]
    assert summary.rounds[-1].eval_examples == 4
    (note,) = [n for n in summary.rounds[-1].notes if "policy 1 answered" in n]
    assert "policy 1 answered 2 examples and policy 2 4, 2 of them the same" in note
    annotate(tmp_path / "eval.jsonl", row("a.mp4", *EVAL))
    run_without_server(str(after_a_round))
    assert {"one of b.mp4", "two of b.mp4"} <= drawn(tmp_path / "run", 3)
    holds(tmp_path)


def test_means_are_over_the_present_eval_split(after_a_round: Path, tmp_path: Path) -> None:
    run = Run.open(tmp_path / "run")
    assert {m["examples"] for m in report.accuracy(run).values()} == {2}
    annotate(tmp_path / "eval.jsonl", row("a.mp4", EVAL[0]))
    summary = run_without_server(str(after_a_round))
    assert summary.rounds[-1].eval_examples == 1
    run = Run.open(tmp_path / "run")
    assert {v: m["examples"] for v, m in report.accuracy(run).items()} == {0: 1, 1: 1, 2: 1}
    assert run.evaluations().collect().height == 2 * 2 + 1, "kept as evidence"
    assert not [n for n in summary.rounds[-1].notes if "answered" in n]


def test_show_draws_over_the_length_as_annotated_now(
    after_a_round: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = (row(name, *some, duration=6.5) for name, some in OLD.items())
    annotate(tmp_path / "train.jsonl", *longer)
    with opened(str(after_a_round)):
        pass
    run = Run.open(tmp_path / "run")
    assert [change for _, change, _ in changes(tmp_path)] == ["corrected"] * 6
    (rollout_id, *_) = run.rollouts().collect()["rollout_id"]
    show(run, rollout_id)
    assert ", 6.5 s)" in capsys.readouterr().out


def test_broken_lines_that_were_mended_are_no_longer_left_out(
    config: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    write(tmp_path, OLD | {"c.mp4": [("backwards", 4, 2), *OLD["c.mp4"]]})
    assert run_without_server(str(config)).rounds[-1].annotations_left_out == 1
    write(tmp_path, OLD | {"c.mp4": [("too late", 4, 9), ("forwards", 2, 4)]})
    assert run_without_server(str(config)).rounds[-1].annotations_left_out == 1
    print_status(Run.open(tmp_path / "run"))
    told = capsys.readouterr().out
    assert "lies outside" in told and "not after its start" not in told
    assert Run.open(tmp_path / "run").quarantine().collect().height == 2, "kept as evidence"


def test_reading_the_same_files_again_writes_nothing(config: Path, tmp_path: Path) -> None:
    with opened(str(config)):
        pass
    run = Run.open(tmp_path / "run")
    before = run.tables.versions()
    with opened(str(config)):
        pass
    assert run.tables.versions() == before
