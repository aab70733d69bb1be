"""What a stage computed is appended in few appends, and nothing but a SIGKILL loses any of it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from flows.stage.appending import appending
from opd_core.engines.hf.sampling import HFEngine
from opd_core.types import Batch, QuarantinedItem, Rollout, VideoOPDError
from storage.runs.run import Run
from storage.tables import history
from tests.flows.kill_points import run_without_server
from tests.storage.storage_factories import new_run, rollout

ROOT = Path(__file__).resolve().parents[3]
FLUSH_SECONDS, BATCH_SECONDS = 0.5, 0.1


def batch(index: int, **changes: Any) -> Batch[Rollout]:
    lost = QuarantinedItem(f"item-{index}", "rollout", None, "it is broken", 0)
    return Batch((rollout(2 * index, **changes), rollout(2 * index + 1)), (lost,), 2)


def appends(run: Run, table: str = "rollouts") -> int:
    found = history.commits(run.tables.folder, table)
    return sum(commit.operation == "Append" for commit in found)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return new_run(tmp_path)


@pytest.mark.parametrize(("flush_seconds", "expected"), [(0.0, 4), (3600.0, 1), (0.06, 2)])
def test_batches_are_appended_together_once_it_is_time(
    run: Run, flush_seconds: float, expected: int
) -> None:
    with appending(run, "rollouts", "rollout", 0, flush_seconds) as rows:
        for index in range(4):
            if index == 2:
                time.sleep(0.07)  # the third batch finds that the time has come
            rows.add(batch(index))
    assert appends(run) == appends(run, "quarantine") == expected
    assert (rows.added, rows.quarantined) == (8, 4)
    assert run.read("rollouts", Rollout) == [rollout(i) for i in range(8)]


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt, SystemExit])
def test_what_was_computed_survives_an_error(run: Run, error: type[BaseException]) -> None:
    with pytest.raises(error), appending(run, "rollouts", "rollout", 0, 3600.0) as rows:
        rows.add(batch(0))
        rows.add(batch(1))
        raise error
    assert run.rollouts().collect().height == 4 and appends(run) == 1
    assert run.quarantine().collect().height == 2


def test_rows_that_the_tables_refuse_are_refused_once(run: Run) -> None:
    with (
        pytest.raises(VideoOPDError, match="is refused because") as caught,
        appending(run, "rollouts", "rollout", 0, 0.0) as rows,
    ):
        rows.add(batch(0, sampling_logprobs=(float("nan"), -1.0)))
    assert not hasattr(caught.value, "__notes__"), "the same append was tried again"
    with (
        pytest.raises(ZeroDivisionError) as found,
        appending(run, "rollouts", "rollout", 0, 3600.0) as rows,
    ):
        rows.add(batch(0, sampling_logprobs=(float("nan"), -1.0)))
        raise ZeroDivisionError
    assert "could not be appended: rollouts: rollout_id v0-" in found.value.__notes__[0]
    assert run.rollouts().collect().is_empty()


def test_a_sigkill_loses_what_was_finished_since_the_last_append_and_no_more(run: Run) -> None:
    child = subprocess.Popen(
        [sys.executable, __file__, str(run.path)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )
    assert child.stdout is not None
    finished: list[float] = []
    for line in child.stdout:
        finished.append(float(line))
        if len(finished) == 18:
            child.kill()
    child.wait()
    kept = run.rollouts().collect().height // 2
    lost = finished[kept:]
    assert 0 < kept < len(finished), "it was killed between two appends"
    assert finished[-1] - lost[0] <= FLUSH_SECONDS + BATCH_SECONDS
    assert appends(run) <= kept / 3, "batches went together"


def slow_batches() -> Iterator[Batch[Rollout]]:
    for index in range(1000):
        time.sleep(BATCH_SECONDS)
        yield batch(index)


def test_a_stage_that_fails_has_appended_what_it_computed(
    write_config: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The third batch of the rollout stage fails; the first two are kept, in one append."""
    config = write_config(tmp_path, {"frames.enabled": False})
    original, calls = HFEngine.sample, 0

    def fail(self: HFEngine, *rest: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 8:  # two of the base's evaluation, three of the teacher, and the third
            raise KeyboardInterrupt
        return original(self, *rest)

    monkeypatch.setattr(HFEngine, "sample", fail)
    with pytest.raises(KeyboardInterrupt):
        run_without_server(str(config))
    run = Run.open(tmp_path / "run")
    assert 8 <= run.rollouts().collect().height < 20
    assert appends(run) == appends(run, "teacher_predictions") == 1
    monkeypatch.setattr(HFEngine, "sample", original)
    run_without_server(str(config))
    assert run.rollouts().collect().height == 20


if __name__ == "__main__":
    opened = Run.open(sys.argv[1])
    opened.config_hash = "c0ffee"
    with appending(opened, "rollouts", "rollout", 0, FLUSH_SECONDS) as collected:
        for one in slow_batches():
            now = time.monotonic()
            collected.add(one)
            print(now, flush=True)
