"""What a round's stages take, from process to process, until its update keeps it."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import pytest

from flows.stage import uses
from flows.summaries import Done
from opd_core.model import peak_memory, token_count

MIB = 1 << 20


@pytest.fixture
def run(tmp_path: Path) -> Path:
    (tmp_path / ".cache").mkdir()
    return tmp_path


def work(run: Path, stage: str, version: int, tokens: int, rows: int = 1) -> None:
    with uses.measuring(run, stage, version) as now:
        token_count.passed(tokens)
        now.done = Done(rows)


def test_executions_of_a_stage_count_together_and_the_running_one_is_last(run: Path) -> None:
    work(run, "rollout", 3, 100)
    work(run, "score", 3, 50)
    work(run, "rollout", 3, 20)
    work(run, "rollout", 2, 7)  # of another round
    work(run, "focus", 3, 0, rows=0)  # had nothing to do
    with uses.measuring(run, "update", 3):
        token_count.passed(30)
        found = uses.of_round(run, 3)
    assert [(use.stage, use.tokens) for use in found] == [
        ("score", 50), ("rollout", 120), ("update", 30)
    ]  # fmt: skip
    for use in found:
        assert use.tokens is not None
        assert use.tokens_per_second == pytest.approx(use.tokens / use.seconds)
        assert use.memory_of == "process" and use.peak_memory > 10 * MIB
    assert [use.stage for use in uses.of_round(run, 3)] == ["score", "rollout"]


def test_a_committed_round_leaves_nothing_of_policies_that_it_superseded(run: Path) -> None:
    uses.forget(run)  # where none was kept
    for version in (2, 3, 4):
        work(run, "rollout", version, 10)
    uses.forget(run)
    assert [uses.of_round(run, version) for version in (2, 3, 4)] == [(), (), ()]
    work(run, "evaluate", 3, 10)
    assert [use.stage for use in uses.of_round(run, 3)] == ["evaluate"]


def test_a_stage_without_tokens_has_no_speed(run: Path) -> None:
    work(run, "focus", 0, 0)
    (use,) = uses.of_round(run, 0)
    assert use.tokens is None and use.tokens_per_second is None


def test_waiting_for_others_is_no_time_of_a_stage(run: Path) -> None:
    with uses.waiting():
        pass  # where none runs
    with uses.measuring(run, "score", 0) as now:
        with uses.waiting():
            time.sleep(0.3)
        assert now.seconds < 0.2 and now.use().seconds < 0.2


def test_a_stage_that_failed_or_a_line_that_was_cut_counts_nothing(run: Path) -> None:
    with pytest.raises(ValueError, match="no"), uses.measuring(run, "score", 0):
        raise ValueError("no")
    work(run, "rollout", 0, 10)
    with (run / ".cache" / "stages.jsonl").open("a") as file:
        file.write('{"version": 0, "stage": "sco')
    assert [use.stage for use in uses.of_round(run, 0)] == ["rollout"]
    work(run, "score", 0, 10)  # begun again after the kill
    assert [use.stage for use in uses.of_round(run, 0)] == ["rollout", "score"]


def test_memory_is_that_of_the_stage_alone() -> None:
    peak_memory.begin()
    block = np.ones(64 * MIB, dtype=np.float64)
    held = peak_memory.peak()[0]
    assert held > block.nbytes
    del block
    peak_memory.begin()
    assert peak_memory.peak()[0] < held - 400 * MIB
