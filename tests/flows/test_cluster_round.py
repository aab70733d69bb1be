"""A whole round with two workers: the rows of a round in one process, up to its update."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from opd_core.types import Rollout, VideoOPDError
from storage.asking.contents import Rows, contents, differences
from storage.runs.run import Run
from tests.flows.kill_points import run_without_server

pytestmark = pytest.mark.slow
SETTINGS = {"score.teacher_topk": 4, "rollout.prompts_per_batch": 3}
OF_THE_UPDATE = {"updates", "trained_rollouts"}
"""Whose numbers are within rounding (`tests/opd_core/update`)."""


def before_the_update(run: Run) -> dict[str, Rows]:
    return {
        name: [r for r in rows if name not in OF_THE_UPDATE and not r.get("policy_version")]
        for name, rows in contents(run).items()
    }


def mismatches(run: Run) -> dict[str, float]:
    """Of rollouts that the gate scored again."""
    rows = run.read("rollouts", Rollout)
    return {r.rollout_id: r.engine_mismatch for r in rows if r.engine_mismatch is not None}


def test_a_round_with_two_workers_is_a_round(write_config: Any, tmp_path: Path) -> None:
    alone = write_config(tmp_path / "alone", SETTINGS)
    two = write_config(tmp_path / "two", SETTINGS | {"cluster.workers": 2})
    runs = []
    for config in (alone, two):
        run_without_server(str(config))
        runs.append(Run.open(config.parent / "run"))
    assert [run.current_policy().version for run in runs] == [1, 1]
    tables, expected = (before_the_update(run) for run in reversed(runs))
    assert differences(tables, expected) == []
    for table in ("teacher_predictions", "rollouts", "teacher_scores", "evaluations"):
        assert expected[table], table
    assert mismatches(runs[1]) == mismatches(runs[0]) != {}


def test_a_cluster_that_does_not_answer_ends_the_stage(write_config: Any, tmp_path: Path) -> None:
    """Before anything is recorded."""
    settings = SETTINGS | {"cluster.workers": 2, "cluster.address": "127.0.0.1:1"}
    config = write_config(tmp_path / "none", settings)
    with pytest.raises(VideoOPDError, match=r"cluster\.address = '127\.0\.0\.1:1' does not answer"):
        run_without_server(str(config))
    assert not (config.parent / "run").exists(), "as of any round that is refused at its start"
