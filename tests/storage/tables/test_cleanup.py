from __future__ import annotations

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import lance
import pytest

from flows.audit.walk import Depth, audit
from flows.stage.prepare import opened
from opd_core.types import Rollout
from storage.audit.links import BrokenLink, appended
from storage.runs.run import Run
from storage.tables import cleanup, history
from tests.flows.kill_points import run_without_server
from tests.known import known
from tests.storage.storage_factories import rollout

SMALL_APPENDS = 20
"""More than a compaction lets be."""


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cleanup, "KEEP_SECONDS", 0.0)


def one_round(run: Run, number: int) -> None:
    first = SMALL_APPENDS * (number - 1)
    for index in range(first, first + SMALL_APPENDS):
        run.append("rollouts", [rollout(index, text="x" * 5000)])
    run.finish_round(number)


def versions(run: Run) -> list[int]:
    return [commit.version for commit in history.commits(run.tables.folder, "rollouts")]


def size(run: Run) -> int:
    table = run.tables.folder / "rollouts.lance"
    return sum(file.stat().st_size for file in table.rglob("*") if file.is_file())


def test_old_versions_go_and_every_round_stays(run: Run, at_once: None) -> None:
    for number in range(1, 5):
        one_round(run, number)
    tags = history.tags(run.tables.folder, "rollouts")
    kept = versions(run)
    assert sorted(tags) == [f"round-{n}" for n in range(1, 5)]
    assert kept == [1, *(tags[f"round-{n}"] for n in (1, 2)), *range(tags["round-3"], kept[-1] + 1)]
    for number in range(1, 5):
        then = Run.open(run.path, round=number)
        expected = [rollout(i, text="x" * 5000) for i in range(SMALL_APPENDS * number)]
        assert then.read("rollouts", Rollout) == expected
    assert run.append("rollouts", [rollout(0), rollout(80)]) == 1
    checked = appended(run)
    assert "older ones without a tag were cleaned up" in checked.notes[0]


def test_the_disk_is_smaller_for_it(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(1, 5):
        one_round(run, number)
    before, rows = size(run), run.read("rollouts", Rollout)
    assert versions(run) == list(range(1, len(versions(run)) + 1)), "an hour has not passed"
    monkeypatch.setattr(cleanup, "KEEP_SECONDS", 0.0)
    assert len(cleanup.clean_up(run.tables, "rollouts", run.run_id, "round-4")) > 60
    assert size(run) < 0.75 * before
    assert run.read("rollouts", Rollout) == rows


def test_nothing_goes_before_the_tag_that_it_is_asked_to_keep_from(run: Run, at_once: None) -> None:
    run.append("rollouts", [rollout(0)])
    assert cleanup.clean_up(run.tables, "rollouts", run.run_id, "round-0") == []
    assert versions(run) == [1, 2]


def test_what_a_reader_holds_is_kept_for_an_hour(run: Run) -> None:
    one_round(run, 1)
    frame = run.rollouts()
    for number in (2, 3):
        one_round(run, number)
    assert frame.collect().height == SMALL_APPENDS


def test_files_of_a_killed_write_go_with_the_next_round(
    run: Run, start: Callable[..., subprocess.Popen[str]]
) -> None:
    folder = run.tables.folder
    writer = start("append", folder, 0, 200, 10)
    assert known(writer.stdout).readline() == "ready\n"
    print("go", file=writer.stdin, flush=True)
    for _ in range(3):
        known(writer.stdout).readline()
    writer.kill()
    writer.wait()
    data = folder / "rollouts.lance" / "data"
    shutil.copy(next(data.glob("*.lance")), data / "0123.lance")  # if no write was under way
    assert "0123.lance" in history.orphans(folder, "rollouts")
    rows = run.rollouts().collect().height
    run.finish_round(1)
    assert history.orphans(folder, "rollouts") == []
    assert run.rollouts().collect().height == rows >= 30


def test_a_version_of_somebody_else_is_kept_as_evidence(run: Run, at_once: None) -> None:
    one_round(run, 1)
    uri = run.tables.folder / "rollouts.lance"
    rows = lance.dataset(uri).to_table()
    lance.write_dataset(rows, uri, mode="overwrite")
    foreign = lance.dataset(uri).version
    for number in range(2, 6):
        one_round(run, number)
    assert foreign in versions(run) and foreign + 1 not in versions(run)
    with pytest.raises(BrokenLink, match=f"version {foreign}: the operation is 'Overwrite'"):
        appended(run)


@pytest.mark.in_turn
def test_a_real_run_that_was_cleaned_up_is_whole(
    tiny_config: Callable[..., Path], tmp_path: Path, at_once: None
) -> None:
    config = tiny_config({"storage.flush_seconds": 0})
    run_without_server(str(config), 3)
    run = Run.open(tmp_path / "run")
    verdicts = list(audit(run, Depth(videos=0.0)))
    assert [v.broken for v in verdicts if v.broken] == []
    notes = {v.link: known(v.checked).notes for v in verdicts}
    assert "cleaned up" in notes["tables were only appended to"][0]
    assert run.finished_rounds() == [1, 2, 3]
    for number in (1, 2, 3):
        versions = Run.open(run.path, round=number).updates().collect()["policy_version"]
        assert versions.to_list() == list(range(1, number + 1))
    assert not any(history.orphans(run.tables.folder, name) for name in ("rollouts", "updates"))
    with opened(str(config)) as work:
        assert work.policy_of_round().version == 3
