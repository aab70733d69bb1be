from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lance
import polars as pl
import pytest

from opd_core.types import QuarantinedItem, Rollout, VideoOPDError
from storage import locks
from storage.tables import lance_tables as tables_module
from storage.tables.lance_tables import Tables
from storage.tables.schemas import SCHEMA_VERSION, TABLES
from tests.known import known
from tests.storage.storage_factories import PROVENANCE, one_of_each, provenance, rollout, score


def ids(tables: Tables) -> list[str]:
    return tables.scan("rollouts").select("rollout_id").collect().get_column("rollout_id").to_list()


def test_create_makes_every_table_and_opens_what_is_there(tables: Tables) -> None:
    assert set(tables.versions()) == set(TABLES)
    tables.append("rollouts", [rollout()], PROVENANCE)
    assert len(ids(Tables.create(tables.folder))) == 1
    assert sorted(p.name for p in tables.folder.parent.iterdir()) == ["tables"]


def test_append_twice_is_append_once(tables: Tables) -> None:
    rows = [rollout(i) for i in range(5)]
    assert tables.append("rollouts", rows, PROVENANCE) == 5
    version = tables.versions()["rollouts"]
    assert tables.append("rollouts", rows, PROVENANCE) == 0
    assert tables.versions()["rollouts"] == version
    assert tables.append("rollouts", [*rows, rollout(5), rollout(5)], PROVENANCE) == 1
    assert len(ids(tables)) == 6


def test_the_first_row_of_a_key_stays(tables: Tables) -> None:
    tables.append("rollouts", [rollout(0, text="first")], PROVENANCE)
    tables.append("rollouts", [rollout(0, text="second")], PROVENANCE)
    assert [r.text for r in tables.read("rollouts", Rollout)] == ["first"]


def test_an_absent_part_of_a_key_equals_itself(tables: Tables) -> None:
    item = QuarantinedItem("a.jsonl:3", "import", None, "no span", None)
    later = replace(item, policy_version=0)
    stamp = replace(PROVENANCE, stage="import")
    assert tables.append("quarantine", [item], stamp) == 1
    assert tables.append("quarantine", [item, later], stamp) == 1
    keys = [("a.jsonl:3", "import", None), ("a.jsonl:3", "import", 1)]
    assert tables.missing("quarantine", keys) == keys[1:]


def test_two_teachers_score_the_same_rollout(tables: Tables) -> None:
    stamp = provenance("teacher_scores")
    assert tables.append("teacher_scores", [score()], stamp) == 1
    assert tables.append("teacher_scores", [score(), score(teacher_hash="u")], stamp) == 1


def test_missing_keeps_the_order(tables: Tables) -> None:
    tables.append("rollouts", [rollout(1)], PROVENANCE)
    asked = [rollout(i).rollout_id for i in (2, 1, 0)]
    assert tables.missing("rollouts", asked) == [asked[0], asked[2]]


def test_rows_and_versions_carry_provenance(tables: Tables) -> None:
    stamp = replace(PROVENANCE, policy_version=3, git_commit="abc")
    tables.append("rollouts", [rollout()], stamp)
    row = tables.scan("rollouts").collect().row(0, named=True)
    assert (row["run_id"], row["config_hash"], row["git_commit"]) == ("run-1", "c0ffee", "abc")
    assert row["attempt"] == "attempt-1" and row["written_at"].tzinfo is not None
    dataset = lance.dataset(tables.folder / "rollouts.lance")
    assert dataset.read_transaction(dataset.version).transaction_properties == {
        "run_id": "run-1", "stage": "rollout", "policy_version": "3", "config_hash": "c0ffee",
        "git_commit": "abc", "attempt": "attempt-1", "take": "0",
    }  # fmt: skip


def test_descriptions_are_in_the_data(tables: Tables) -> None:
    schema = lance.dataset(tables.folder / "rollouts.lance").schema
    assert schema.field("seed").metadata[b"description"] == b"Seed it was sampled with."


def test_each_table_has_one_writer(tables: Tables) -> None:
    with pytest.raises(ValueError, match="written by 'rollout', not 'score'"):
        tables.append("rollouts", [rollout()], replace(PROVENANCE, stage="score"))


def test_a_refused_batch_writes_nothing(tables: Tables) -> None:
    with pytest.raises(VideoOPDError):
        tables.append("rollouts", [rollout(0), rollout(1, student_iou=None)], PROVENANCE)
    assert ids(tables) == []


def test_scans_push_filters_and_columns_down_and_stay_at_their_version(tables: Tables) -> None:
    tables.append("rollouts", [rollout(i, version=i % 2) for i in range(10)], PROVENANCE)
    frame = tables.scan("rollouts")
    wanted = frame.filter(pl.col("policy_version") == 1).select("rollout_id")
    assert "SELECTION" in wanted.explain() and "PROJECT 2/" in wanted.explain()
    assert wanted.collect().height == 5
    assert tables.tag("rollouts", "round-0") == tables.versions()["rollouts"]
    tables.append("rollouts", [rollout(99)], PROVENANCE)
    assert frame.collect().height == 10
    assert tables.scan("rollouts", "round-0").collect().height == 10
    assert tables.scan("rollouts").collect().height == 11


def test_windows_and_null_tests_work_on_scans(tables: Tables) -> None:
    rows = [
        rollout(i, version=i % 2, predicted_span=None if i < 3 else (1.0, 2.0)) for i in range(6)
    ]
    tables.append("rollouts", rows, PROVENANCE)
    frame = tables.scan("rollouts")
    assert frame.filter(pl.col("predicted_start").is_null()).collect().height == 3
    ranked = frame.select(pl.col("rollout_id").rank("ordinal").over("policy_version"))
    assert sorted(ranked.collect().to_series().to_list()) == [1, 1, 2, 2, 3, 3]


def test_read_filters_and_keeps_the_order(tables: Tables) -> None:
    rows = [rollout(i, version=i % 2) for i in (5, 3, 1, 0)]
    tables.append("rollouts", rows, PROVENANCE)
    assert tables.read("rollouts", Rollout, pl.col("policy_version") == 1) == rows[:3]


def test_rows_are_found_again_by_their_places_whatever_is_joined_later(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of one version: later ones have rows in other files."""
    columns = ("rollout_id", "student_iou")
    assert tables.places("rollouts", columns).height == 0, "nothing was written"
    rows = [rollout(i, version=i % 3, student_iou=i / 100) for i in range(60)]
    for part in range(0, 60, 3):
        tables.append("rollouts", rows[part : part + 3], PROVENANCE)
    version = tables.version("rollouts")
    found = tables.places("rollouts", columns, version, "policy_version = 1")
    assert found["rollout_id"].to_list() == [r.rollout_id for r in rows[1::3]]
    assert found["student_iou"].to_list() == [r.student_iou for r in rows[1::3]]
    tables.compact("rollouts")
    tables.append("rollouts", [rollout(99, version=1)], PROVENANCE)
    turned = found["place_in_table"].to_list()[::-1]

    def read(
        places: list[int], version: int | None = None, without: Sequence[str] = ()
    ) -> list[Rollout]:
        return list(tables.read_at("rollouts", Rollout, places, version, without))

    assert read(turned, version) == rows[1::3][::-1]
    now = tables.places("rollouts", columns, where="policy_version = 1")["place_in_table"].to_list()
    assert read(now[:-1]) == rows[1::3] and read([]) == []
    monkeypatch.setattr(tables_module, "RECORDS_AT_ONCE", 7)
    assert read(turned, version, ["engine_mismatch"]) == [
        replace(row, engine_mismatch=None) for row in rows[1::3][::-1]
    ]
    with pytest.raises(ValueError, match="cannot be read without"):
        read(turned, version, ["prompt_token_ids"])


def test_tags_never_move(tables: Tables) -> None:
    first = tables.tag("rollouts", "round-1")
    tables.append("rollouts", [rollout()], PROVENANCE)
    assert tables.tag("rollouts", "round-1") == first


def test_compaction_joins_small_fragments_and_keeps_rows_order_and_tags(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "COMPACT_ABOVE_FRAGMENTS", 3)
    for i in range(3):
        tables.append("rollouts", [rollout(i)], PROVENANCE)
    before = tables.tag("rollouts", "round-0")
    tables.compact("rollouts")
    assert tables.versions()["rollouts"] == before  # not yet worth it
    tables.append("rollouts", [rollout(3)], PROVENANCE)
    tables.compact("rollouts")
    dataset = lance.dataset(tables.folder / "rollouts.lance")
    assert len(dataset.get_fragments()) == 1
    assert ids(tables) == [rollout(i).rollout_id for i in range(4)]
    assert tables.scan("rollouts", "round-0").collect().height == 3


def test_compaction_leaves_full_fragments_alone(
    tables: Tables, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables_module, "COMPACT_ABOVE_FRAGMENTS", 1)
    monkeypatch.setattr(tables_module, "ROWS_PER_FRAGMENT", 10)
    tables.append("rollouts", [rollout(i) for i in range(10)], PROVENANCE)
    full = lance.dataset(tables.folder / "rollouts.lance").get_fragments()[0].data_files()
    for i in range(10, 16):
        tables.append("rollouts", [rollout(i)], PROVENANCE)
    tables.compact("rollouts")
    fragments = lance.dataset(tables.folder / "rollouts.lance").get_fragments()
    assert [f.count_rows() for f in fragments] == [10, 6]
    assert [f.path for f in fragments[0].data_files()] == [f.path for f in full]


# --- what goes wrong -----------------------------------------------------------------------------


def test_another_format_says_what_to_do(tables: Tables) -> None:
    file = tables.folder / "format.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": 99}))
    with pytest.raises(
        VideoOPDError, match=f"format 99 and this program reads format {SCHEMA_VERSION} and older"
    ):
        Tables.open(tables.folder)


def test_changed_columns_say_what_to_do(tables: Tables) -> None:
    lance.dataset(tables.folder / "draws.lance").drop_columns(["position"])
    with pytest.raises(VideoOPDError, match=r"columns of .*draws.lance are not those of format"):
        tables.scan("draws")


@pytest.mark.parametrize("content", [None, "", "{}", "[]"])
def test_a_folder_without_tables_is_named(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / "format.json").write_text(content)
    with pytest.raises(VideoOPDError, match=str(tmp_path)):
        Tables.open(tmp_path)


def test_a_table_that_was_put_back_is_read_anew(tables: Tables, tmp_path: Path) -> None:
    """Whoever has it open keeps what Lance has read, and the copy may reach the same version."""
    tables.append("rollouts", [rollout(0)], PROVENANCE)
    folder, copy = tables.folder / "rollouts.lance", tmp_path / "copy"
    shutil.copytree(folder, copy)
    tables.append("rollouts", [rollout(1)], PROVENANCE)
    version = tables.version("rollouts")
    assert ids(tables) == [rollout(0).rollout_id, rollout(1).rollout_id]
    shutil.rmtree(folder)
    shutil.copytree(copy, folder)
    Tables.open(tables.folder).append("rollouts", [rollout(2)], PROVENANCE)
    assert tables.version("rollouts") == version
    assert ids(tables) == [rollout(0).rollout_id, rollout(2).rollout_id]


def test_a_missing_table_or_version_is_named(tables: Tables) -> None:
    with pytest.raises(
        VideoOPDError, match="there is no table 'rollout'; the tables are: examples"
    ):
        tables.scan("rollout")
    for version in (77, "round-7"):
        with pytest.raises(VideoOPDError, match=f"version {version} of rollouts"):
            tables.scan("rollouts", version)
    shutil.rmtree(tables.folder / "rollouts.lance")
    with pytest.raises(VideoOPDError, match=r"table rollouts of .* is missing"):
        tables.append("rollouts", [rollout()], PROVENANCE)


def test_a_waiting_writer_is_told_who_holds_the_table(
    tables: Tables, start: Callable[..., subprocess.Popen[str]]
) -> None:
    path = tables.folder / ".locks" / "rollouts.lock"
    process = start("hold", path)
    known(process.stdout).readline()
    with pytest.raises(
        VideoOPDError, match=f"process {process.pid} on host .*stage rollout, since"
    ):
        tables.append("rollouts", [rollout()], PROVENANCE, timeout=0.1)
    process.send_signal(signal.SIGKILL)  # the lock dies with its holder
    process.wait()
    assert tables.append("rollouts", [rollout()], PROVENANCE, timeout=5.0) == 1


def test_a_child_of_the_holder_does_not_keep_the_lock(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    process = start("hold_and_fork", tmp_path / "a.lock")
    child = int(known(process.stdout).readline())
    process.kill()
    process.wait()
    try:
        with locks.held(tmp_path / "a.lock", "rollout", timeout=5.0):
            os.kill(child, 0)  # it is still there
    finally:
        os.kill(child, signal.SIGKILL)


def test_an_unreadable_description_is_still_a_holder(tmp_path: Path) -> None:
    path = tmp_path / "a.lock"
    assert locks.holder(path) == "another process"
    path.write_text("[]")
    assert locks.holder(path) == "another process"


def test_two_processes_appending_the_same_keys_write_each_once(
    tables: Tables, start: Callable[..., subprocess.Popen[str]]
) -> None:
    processes = [start("append", tables.folder, 0, 40, 4) for _ in range(2)]
    for process in processes:
        assert known(process.stdout).readline() == "ready\n"
    for process in processes:
        known(process.stdin).write("go\n")
        known(process.stdin).flush()
    written = [sum(map(int, p.communicate(timeout=60)[0].split())) for p in processes]
    assert sum(written) == 40
    assert sorted(ids(tables)) == sorted(rollout(i).rollout_id for i in range(40))


@pytest.mark.kill
@pytest.mark.parametrize("moment", [0.0, 0.004, 0.011, 0.03, 0.08])
def test_a_writer_killed_at_any_moment_leaves_whole_batches(
    tables: Tables, start: Callable[..., subprocess.Popen[str]], moment: float
) -> None:
    process = start("append", tables.folder, 0, 4000, 4)
    known(process.stdout).readline()
    known(process.stdin).write("go\n")
    known(process.stdin).flush()
    known(process.stdout).readline()
    time.sleep(moment)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = ids(tables)
    assert found == [rollout(i).rollout_id for i in range(len(found))]
    assert len(found) % 4 == 0 and 4 <= len(found) < 4000
    rows = [rollout(i) for i in range(len(found) + 8)]
    assert tables.append("rollouts", rows, PROVENANCE, timeout=5.0) == 8
    assert ids(tables) == [r.rollout_id for r in rows]
    assert tables.read("rollouts", Rollout) == rows


@pytest.mark.skipif(sys.platform != "linux", reason="needs mount namespaces")
def test_a_full_disk_is_one_sentence_and_leaves_the_table_as_it_was(
    tmp_path: Path, start: Callable[..., subprocess.Popen[str]]
) -> None:
    mount = 'mount -t tmpfs -o size=3m tmpfs "$0" || exit 77; exec "$@"'
    prefix = ("unshare", "-rm", "sh", "-c", mount, str(tmp_path))
    if shutil.which("unshare") is None:
        pytest.skip("no unshare")
    process = start("fill", tmp_path / "tables", prefix=prefix)
    answer, _ = process.communicate(timeout=60)
    if process.returncode in (1, 77) and not answer:
        pytest.skip("no mount namespaces here")
    kind, sentence, unchanged, again = answer.strip().split("|")
    assert (kind, unchanged, again) == ("VideoOPDError", "True", "1")
    assert f"{tmp_path / 'tables'} cannot be written: its disk is full; free" in sentence


def test_a_disk_error_is_one_sentence(tables: Tables, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*args: Any, **kwargs: Any) -> None:
        raise OSError("LanceError(IO): No space left on device (os error 28), rust/x.rs:1:2")

    monkeypatch.setattr(lance, "write_dataset", full)
    with pytest.raises(VideoOPDError, match=f"{tables.folder} cannot be written: its disk is full"):
        tables.append("rollouts", [rollout()], PROVENANCE)


def test_every_table_takes_its_record(tables: Tables) -> None:
    for name, record in one_of_each().items():
        assert tables.append(name, [record], provenance(name)) == 1
        assert tables.append(name, [record], provenance(name)) == 0
        key = tuple(getattr(record, column) for column in TABLES[name].key)
        assert tables.missing(name, [key if len(key) > 1 else key[0]]) == []


def test_read_checks_the_record_type(tables: Tables) -> None:
    with pytest.raises(TypeError):
        tables.read("draws", Rollout)


def test_import_is_light() -> None:
    import subprocess

    code = "import sys, storage.runs.run, storage.asking.query\n"
    code += "print([m in sys.modules for m in MODULES])"
    code = code.replace("MODULES", "('lance', 'polars')")
    root = Path(tables_module.__file__).parents[2]
    done = subprocess.run([sys.executable, "-c", code], cwd=root, capture_output=True, text=True)
    assert done.stdout == "[False, False]\n"
