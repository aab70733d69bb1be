from __future__ import annotations

import json
import random
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from opd_core.config.sections import StorageSection
from opd_core.types import Rollout, VideoOPDError
from storage.audit import links
from storage.runs.run import Run
from storage.runs.run_folder import no_run_if_refused
from storage.tables import cleanup, damage, history, older_formats, place
from storage.tables.lance_tables import Tables
from storage.tables.schemas import SCHEMA_VERSION, TABLES
from tests.object_store import object_store
from tests.storage.storage_factories import PROVENANCE, checkpoint, one_of_each, rollout


@pytest.fixture(scope="module")
def store() -> Iterator[str]:
    with object_store() as prefix:
        yield prefix


def run_in(folder: Path, store: str | None, config_hash: str = "c0ffee") -> Run:
    for seed, name in enumerate(("student", "teacher")):
        if not (folder / name).exists():
            checkpoint(folder / name, seed)
    models = folder / "student", folder / "teacher"
    return Run.create(folder / "run", "{}", config_hash, *models, store=store)


def test_every_table_is_in_the_store_and_its_locks_in_the_folder(
    tmp_path: Path, store: str
) -> None:
    run = run_in(tmp_path, store)
    for name, record in one_of_each().items():
        assert run.append(name, [record], stage=TABLES[name].writer or "score") == 1
        assert run.append(name, [record], stage=TABLES[name].writer or "score") == 0
        assert Run.open(run.path).read(name, type(record)) == [record]
        assert place.size(run.tables.folder, name) > 0
    assert {p.name for p in run.tables.folder.iterdir()} == {"format.json", ".locks"}
    assert str(place.store_of(run.tables.folder)).startswith(f"{store}/run-")


def test_rounds_are_tagged_read_and_cleaned_up_as_in_a_folder(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cleanup, "KEEP_SECONDS", 0.0)
    sizes: dict[str, list[object]] = {}
    for where in ("store", "folder"):
        run = run_in(tmp_path / where, store if where == "store" else None)
        for number in range(1, 3):
            for at in range(18):  # more fragments than are left alone
                run.append("rollouts", [rollout(100 * number + at)], policy_version=0)
            run.finish_round(number)
        folder = run.tables.folder
        sizes[where] = [
            [c.operation for c in history.commits(folder, "rollouts")],
            history.tags(folder, "rollouts"),
            run.tables.scan("rollouts", "round-1").collect().height,
            run.rollouts().collect()["rollout_id"].to_list(),
            history.orphans(folder, "rollouts"),
        ]
        assert links.attempts(run).count > 0
    assert sizes["store"] == sizes["folder"]
    assert sizes["store"][2] == 18


@pytest.mark.kill
def test_a_killed_writer_loses_nothing_and_the_next_goes_on(
    tmp_path: Path, store: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    tables = Tables.create(tmp_path / "tables", store)
    pause = random.Random(1)
    for _ in range(5):
        worker = start("append", tables.folder, 0, 400, 1)
        assert worker.stdout and worker.stdin and worker.stdout.readline() == "ready\n"
        worker.stdin.write("\n")
        worker.stdin.flush()
        told = ""
        while not told.endswith("1\n"):  # it begins with rows that are there already
            told += worker.stdout.readline()
        time.sleep(pause.uniform(0.0, 0.4))
        worker.kill()
        written = told + worker.communicate()[0]
        there = tables.read("rollouts", Rollout)
        assert len(there) >= written.count("1\n")
        assert [r.rollout_id for r in there] == [rollout(i).rollout_id for i in range(len(there))]
    assert 5 <= len(there) < 400
    assert tables.append("rollouts", [rollout(i) for i in range(400)], PROVENANCE) == 400 - len(
        there
    )
    cleanup.clean_up(tables, "rollouts", PROVENANCE.run_id, "round-0")
    assert history.orphans(tables.folder, "rollouts") == []


def test_two_writers_write_each_row_once(
    tmp_path: Path, store: str, start: Callable[..., subprocess.Popen[str]]
) -> None:
    tables = Tables.create(tmp_path / "tables", store)
    workers = [start("append", tables.folder, 0, 40, 2) for _ in range(2)]
    for worker in workers:
        assert worker.stdout and worker.stdout.readline() == "ready\n"
    for worker in workers:
        assert worker.stdin
        worker.stdin.write("\n")
        worker.stdin.flush()
    added = sum(int(n) for worker in workers for n in worker.communicate()[0].split())
    assert added == 40 == tables.scan("rollouts").collect().height


def test_two_runs_of_one_name_do_not_meet(tmp_path: Path, store: str) -> None:
    first, second = (run_in(tmp_path / name, store) for name in ("a", "b"))
    first.append("rollouts", [rollout()], policy_version=0)
    assert second.read("rollouts", Rollout) == []


def test_a_run_stays_where_it_began(tmp_path: Path, store: str) -> None:
    began = run_in(tmp_path, store)
    began.append("rollouts", [rollout()], policy_version=0)
    assert len(run_in(tmp_path, None).read("rollouts", Rollout)) == 1
    assert len(run_in(tmp_path, store, "other").read("rollouts", Rollout)) == 1
    with pytest.raises(VideoOPDError, match="take that key out of the config"):
        run_in(tmp_path, "s3://elsewhere/runs")
    run_in(tmp_path / "local", None)
    with pytest.raises(VideoOPDError, match="are in its folder, and storage.tables = s3://"):
        run_in(tmp_path / "local", store)


def test_a_store_that_does_not_answer_is_one_sentence(
    tmp_path: Path, store: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(VideoOPDError, match=r"s3://no-such-bucket/x cannot be reached .*bucket is"):
        run_in(tmp_path / "none", "s3://no-such-bucket/x")
    run = run_in(tmp_path, store)
    monkeypatch.setenv("AWS_ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(VideoOPDError, match="cannot be reached"):
        Run.open(run.path).rollouts()
    with pytest.raises(VideoOPDError, match="cannot be reached"), damage.told([run.path]):
        raise OSError("LanceError(IO): Generic S3 error: gone")
    with (
        pytest.raises(VideoOPDError, match=r"s3://.*/rollouts.lance cannot be reached .*gone"),
        run.tables._locked("rollouts", "rollout", 1.0),
    ):
        raise OSError("LanceError(IO): Generic S3 error: gone")  # in the middle of a commit


def test_what_is_missing_in_a_store_is_told_as_in_a_folder(tmp_path: Path, store: str) -> None:
    import lance

    run = run_in(tmp_path, store)
    lance.LanceDataset.drop(place.uri(run.tables.folder, "rollouts"))
    with pytest.raises(VideoOPDError, match="table rollouts of .* is missing; restore it"):
        run.rollouts()


def test_a_run_that_is_refused_leaves_nothing_in_the_store(tmp_path: Path, store: str) -> None:
    from lance.file import LanceFileSession

    with pytest.raises(VideoOPDError, match="told"), no_run_if_refused(tmp_path / "run"):
        run_in(tmp_path, f"{store}/refused")
        assert len(list(LanceFileSession(f"{store}/refused").list())) > len(TABLES)
        raise VideoOPDError("told")
    assert list(LanceFileSession(f"{store}/refused").list()) == []
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("killed", [False, True])
def test_an_older_format_is_brought_up_in_the_store(
    tmp_path: Path, store: str, killed: bool
) -> None:
    """Killed once before, after a new table was made and before it was tagged."""
    import lance

    tables = Tables.create(tmp_path / "tables", store)
    tables.append("rollouts", [rollout()], PROVENANCE)
    for name in TABLES:
        tables.tag(name, "round-1")
    lance.LanceDataset.drop(place.uri(tables.folder, "reruns"))
    file = tables.folder / "format.json"
    older = json.loads(file.read_text()) | {"schema_version": SCHEMA_VERSION - 1}
    file.write_text(json.dumps(older))
    assert "reruns" not in Tables.open(tables.folder).names
    if killed:
        empty = TABLES["reruns"].schema.empty_table()
        lance.write_dataset(empty, place.uri(tables.folder, "reruns"), mode="create")
    assert older_formats.migrate(tables.folder).keys() == ({"reruns"} if not killed else set())
    assert "round-1" in history.tags(tables.folder, "reruns")
    assert Tables.open(tables.folder).format == SCHEMA_VERSION
    assert len(Tables.open(tables.folder).read("rollouts", Rollout)) == 1


def test_a_run_moves_and_its_tables_stay(tmp_path: Path, store: str) -> None:
    run = run_in(tmp_path, store)
    run.append("rollouts", [rollout()], policy_version=0)
    shutil.move(run.path, tmp_path / "moved")
    assert len(Run.open(tmp_path / "moved").read("rollouts", Rollout)) == 1


def test_what_is_no_store_is_refused_in_the_config() -> None:
    assert StorageSection(tables="s3://bucket/a/b").tables == "s3://bucket/a/b"
    for wrong in ("gs://bucket/a", "s3://", "runs/tables"):
        with pytest.raises(ValueError, match="set it to s3://BUCKET/PREFIX"):
            StorageSection(tables=wrong)
