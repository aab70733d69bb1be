"""A stage that two processes begin at once begins its take once."""

from __future__ import annotations

from pathlib import Path

import pytest

from opd_core.types import VideoOPDError
from storage.runs.run import Run
from tests.storage.storage_factories import new_run, one_of_each


def words(run: Run) -> str:
    """What one types for its config."""
    return "tiny.toml"


def with_stale_divergences(folder: Path) -> Run:
    run = new_run(folder)
    for name in ("rollouts", "teacher_scores", "divergences"):
        run.append(name, [one_of_each()[name]], policy_version=0)
    run.begin("score", 0, words, force=True).new_take()
    assert [s.stage for s in run.takes().stale()] == ["rescore"]
    return run


def test_what_another_process_began_again_meanwhile_is_not_begun_twice(tmp_path: Path) -> None:
    ours, theirs = with_stale_divergences(tmp_path), new_run(tmp_path)
    both = [run.begin("rescore", 0, words) for run in (ours, theirs)]
    assert all(begun.again for begun in both)
    for begun in both:
        begun.new_take()
    assert ours.takes().take("rescore", 0) == theirs.takes().take("rescore", 0) == 1
    assert ours.takes().stale() == []


def test_what_is_forced_is_begun_each_time(tmp_path: Path) -> None:
    runs = with_stale_divergences(tmp_path), new_run(tmp_path)
    for begun in [run.begin("score", 0, words, force=True) for run in runs]:
        begun.new_take()
    assert runs[0].takes().take("score", 0) == 3


def test_what_came_to_stand_in_the_way_refuses_the_take(tmp_path: Path) -> None:
    ours, theirs = with_stale_divergences(tmp_path), new_run(tmp_path)
    ours.append("teacher_scores", [one_of_each()["teacher_scores"]], policy_version=0)
    begun = ours.begin("rescore", 0, words)
    theirs.begin("rollout", 0, words, force=True).new_take()
    with pytest.raises(VideoOPDError, match="rescore of round 1 cannot run yet: score of round 1"):
        begun.new_take()
    assert ours.takes().take("rescore", 0) == 0
