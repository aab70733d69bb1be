from __future__ import annotations

import json
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from opd_core.types import QuarantinedItem, Rollout, VideoOPDError
from storage.runs.run import Run
from storage.tables import provenance
from storage.tables.schemas import TABLES
from tests.storage.storage_factories import checkpoint, new_run, one_of_each, rollout


def test_a_run_is_created_once_and_opened_afterwards(tmp_path: Path) -> None:
    first = new_run(tmp_path)
    again = new_run(tmp_path, config_hash="other")
    read = Run.open(tmp_path / "run")
    assert first.run_id == again.run_id == read.run_id
    assert {p.stem for p in (tmp_path / "run" / "configs").iterdir()} == {"c0ffee", "other"}
    content = json.loads((tmp_path / "run" / "run.json").read_text())
    assert content["student"]["weights_hash"] == first.current_policy().weights_hash
    assert set(content) == {
        "run_id", "created_at", "schema_version", "git_commit", "config_hash", "student", "teacher"
    }  # fmt: skip


def test_every_table_has_its_frame(run: Run) -> None:
    for name, record in one_of_each().items():
        assert run.append(name, [record], stage=TABLES[name].writer or "score") == 1
        assert getattr(run, name)().collect().height == 1
        assert run.read(name, type(record)) == [record]


def test_rows_name_run_config_and_stage_execution(run: Run) -> None:
    run.append("rollouts", [rollout(0)], policy_version=0)
    run.append("rollouts", [rollout(1)], policy_version=0)
    with run.exclusive("rollout"):
        run.append("rollouts", [rollout(2)], policy_version=0)
    rows = run.rollouts().collect()
    assert set(rows["run_id"]) == {run.run_id} and set(rows["config_hash"]) == {"c0ffee"}
    first, second, third = rows["attempt"]
    assert first == second != third


def test_quarantine_needs_a_stage(run: Run) -> None:
    item = QuarantinedItem("e", "score", None, "too long", 0)
    with pytest.raises(ValueError, match="name of the stage"):
        run.append("quarantine", [item])
    assert run.append("quarantine", [item], stage="score") == 1


def test_a_run_opened_for_reading_writes_nothing(run: Run) -> None:
    with pytest.raises(VideoOPDError, match="opened for reading; open it with its config"):
        Run.open(run.path).append("rollouts", [rollout()])
    assert run.read("rollouts", Rollout) == []


def test_exclusive_names_who_is_in_the_stage(run: Run) -> None:
    other = Run.open(run.path)
    with run.exclusive("update"), run.exclusive("evaluate"):
        sentence = r"update is in use by process \d+ on host"
        with pytest.raises(VideoOPDError, match=sentence), other.exclusive("update"):
            pass
    with other.exclusive("update"):
        pass


def test_finish_round_tags_every_table(run: Run) -> None:
    run.append("rollouts", [rollout()])
    tagged = run.finish_round(1)
    assert set(tagged) == set(TABLES)
    run.append("rollouts", [rollout(1)])
    assert run.finish_round(1) == tagged
    assert run.tables.scan("rollouts", "round-1").collect().height == 1


def test_changed_base_weights_are_refused(run: Run, tmp_path: Path) -> None:
    checkpoint(tmp_path / "student", seed=5)
    sentence = f"the weights in {tmp_path / 'student'} are not those run .* began with; put"
    with pytest.raises(VideoOPDError, match=sentence):
        new_run(tmp_path)
    with pytest.raises(VideoOPDError, match=sentence):
        run.current_policy()


def test_the_student_may_move_when_it_is_the_same(run: Run, tmp_path: Path) -> None:
    (tmp_path / "student").rename(tmp_path / "moved")
    run = Run.create(run.path, "{}", "c0ffee", tmp_path / "moved", tmp_path / "teacher")
    assert run.current_policy().path == tmp_path / "moved"
    assert Run.open(run.path).rollouts().collect().is_empty()


@pytest.mark.parametrize("what", ["missing", "empty", "file", "damaged"])
def test_what_is_no_run_is_named(tmp_path: Path, what: str) -> None:
    path = tmp_path / "run"
    if what in ("empty", "damaged"):
        path.mkdir()
    if what == "file":
        path.write_text("")
    if what == "damaged":
        (path / "run.json").write_text("{")
    with pytest.raises(VideoOPDError, match=str(path)) as caught:
        Run.open(path)
    assert ";" in str(caught.value) and "\n" not in str(caught.value)


def test_a_folder_with_other_content_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "run"
    path.mkdir()
    (path / "thesis.tex").write_text("")
    with pytest.raises(VideoOPDError, match=r"is not empty and no run; set run\.path"):
        new_run(tmp_path)
    assert [p.name for p in path.iterdir()] == ["thesis.tex"]


def test_a_missing_student_is_named(tmp_path: Path) -> None:
    checkpoint(tmp_path / "teacher")
    (tmp_path / "student").mkdir()
    with pytest.raises(VideoOPDError, match=r"student holds no \*.safetensors"):
        new_run(tmp_path)


@pytest.mark.kill
@pytest.mark.parametrize(
    ("patch", "call"),
    [
        ("storage.hashes:_tensors_hash", 2),
        ("lance:write_dataset", 4),
        ("storage.tables.lance_tables:write_json", 1),
        ("pathlib:Path.rename", 1),
        ("storage.tables.lance_tables:sync_folder", 1),
        ("storage.runs.run_folder:write_json", 1),
        ("pathlib:Path.replace", 4),  # run.json, after format.json and two hashes
        ("storage.runs.run:write_whole", 1),
    ],
)
def test_creation_killed_anywhere_is_completed(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]], patch: str, call: int
) -> None:
    assert start("create", tmp_path, patch, call).wait(60) == -9
    run = new_run(tmp_path)
    assert run.append("rollouts", [rollout()]) == 1
    assert run.current_policy().version == 0
    names = {p.name for p in run.path.iterdir()}
    assert names == {"run.json", "configs", "tables", "policies", ".locks", ".cache"}


def test_opening_and_a_scan_are_fast(run: Run) -> None:
    started = time.perf_counter()
    Run.open(run.path).rollouts().select("rollout_id").collect()
    assert time.perf_counter() - started < 0.5


def test_the_commit_is_of_this_checkout_or_absent(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def git(*arguments: Any) -> str:
        return subprocess.run(
            ["git", "-c", "user.name=a", "-c", "user.email=a@b.c", *arguments],
            cwd=tmp_path, check=True, capture_output=True, text=True,
        ).stdout.strip()  # fmt: skip

    monkeypatch.setattr(provenance, "__file__", str(tmp_path / "provenance.py"))
    commit = provenance.git_commit.__wrapped__
    (tmp_path / "provenance.py").write_text("")
    assert commit() is None
    git("init", "-q")
    git("commit", "-q", "--allow-empty", "-m", "a")
    assert commit() is None  # somebody else's repository
    git("add", "provenance.py")
    git("commit", "-q", "-m", "b")
    assert commit() == git("rev-parse", "HEAD")
    (tmp_path / "provenance.py").write_text("x")
    assert commit() == git("rev-parse", "HEAD") + "-dirty"
