"""Runs of a program that knew fewer columns: they open, and `migrate` brings them up."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import lance
import pyarrow as pa
import pytest

from flows.cli import main
from opd_core.types import Evaluation, Judgement, Rollout, Update, VideoOPDError
from storage.runs.run import Run
from storage.tables import history
from storage.tables.lance_tables import Tables
from storage.tables.schemas import RETIRED, SCHEMA_VERSION, TABLES
from tests.storage.storage_factories import PROVENANCE, new_run, one_of_each, rollout

OLDER = SCHEMA_VERSION - 1
LATER = {
    "rollouts": ["engine_mismatch"],
    "updates": ["max_logprob_mismatch", "stopped_early", "moved_share", "stages"],
}
"""Optional columns that the older program did not know."""


NEW_TABLE = "data_changes"
"""A table that it did not know."""


def set_back(tables: Path) -> None:
    """Makes the tables those of a program without some columns and a table, and with a column that
    is read no more; their rows stay."""
    shutil.rmtree(tables / f"{NEW_TABLE}.lance")
    for name in {*LATER, *RETIRED}:
        uri = tables / f"{name}.lance"
        rows = lance.dataset(uri).to_table().drop_columns(LATER.get(name, []))
        for column in RETIRED.get(name, ()):
            rows = rows.append_column(
                pa.field(column, pa.float64(), nullable=False), pa.array([0.5] * rows.num_rows)
            )
        shutil.rmtree(uri)
        lance.write_dataset(rows.slice(0, 0), uri, mode="create")
        if rows.num_rows:
            lance.write_dataset(rows, uri, mode="append")
    file = tables / "format.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), "schema_version": OLDER}))


def without_judgements(tables: Path) -> None:
    """Makes the table that of an earlier program of the same format."""
    lance.dataset(tables / "evaluations.lance").drop_columns(["judgements"])


def test_a_column_that_came_within_a_format(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """It is absent and asked for like one of a later format, and lost nothing when it came."""
    run = new_run(tmp_path)
    one = one_of_each()["evaluations"]
    run.append("evaluations", [one], stage="evaluate")
    without_judgements(run.tables.folder)
    again = Run.open(run.path)
    assert again.read("evaluations", Evaluation) == [one]
    asked = "without judgements .*`videoopd migrate"
    with pytest.raises(VideoOPDError, match=asked):
        of_evaluate = replace(PROVENANCE, stage="evaluate")
        again.tables.append("evaluations", [replace(one, policy_version=7)], of_evaluate)
    with pytest.raises(VideoOPDError, match=asked):
        new_run(tmp_path)
    assert main(["migrate", str(run.path)]) == 0
    assert f"format {SCHEMA_VERSION}, 1 columns added, no row moved" in capsys.readouterr().out
    again = Run.open(run.path)
    assert again.migrate() == {} and again.older_rows_end() is None, "the same readers read them"
    made = (Judgement("their", 1.0, 2.0, 0.5), Judgement("other", None, None, 0.0))
    new = replace(one, policy_version=7, judgements=made)
    assert new_run(tmp_path).append("evaluations", [new], stage="evaluate") == 1
    assert again.read("evaluations", Evaluation) == [one, new]


def test_two_migrations_within_a_format_are_both_kept(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    for _ in range(2):
        without_judgements(run.tables.folder)
        assert Run.open(run.path).migrate() == {"evaluations": ["judgements"]}
    newest = lance.dataset(run.tables.folder / "evaluations.lance").version
    tags = history.tags(run.tables.folder, "evaluations")
    assert {newest - 1, newest, newest - 2, newest - 3} <= set(tags.values())
    assert history.only_absent_columns(run.tables.folder, "evaluations", newest)


def test_a_lost_table_is_not_made_anew(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    shutil.rmtree(run.tables.folder / "evaluations.lance")
    assert run.migrate() == {}
    with pytest.raises(VideoOPDError, match="table evaluations of .* is missing"):
        run.evaluations()


@pytest.fixture
def older(tmp_path: Path) -> Run:
    run = new_run(tmp_path)
    for name, record in one_of_each().items():
        run.append(name, [record], stage=TABLES[name].writer or "score")
    set_back(run.tables.folder)
    return run


def test_an_older_run_is_read_and_what_it_has_not_is_null(older: Run) -> None:
    run = Run.open(older.path)
    (row,) = run.read("rollouts", Rollout)
    assert row.engine_mismatch is None and row.rollout_id == rollout().rollout_id
    (update,) = run.read("updates", Update)
    assert update.stopped_early is None and update.max_logprob_mismatch is None
    frame = run.scan("rollouts").collect()
    assert frame.columns == TABLES["rollouts"].schema.names
    assert frame.schema["engine_mismatch"].is_float()
    assert run.trajectories().collect().height == 1
    assert run.scan(NEW_TABLE).collect().columns == TABLES[NEW_TABLE].schema.names
    assert run.scan(NEW_TABLE).collect().is_empty()
    assert run.evaluations().collect().columns == TABLES["evaluations"].schema.names


def test_an_older_run_is_not_written_before_it_is_brought_up(older: Run, tmp_path: Path) -> None:
    with pytest.raises(VideoOPDError, match=rf"format {OLDER}.*`videoopd migrate {older.path}`"):
        Tables.open(older.tables.folder).append("rollouts", [rollout(1)], PROVENANCE)
    with pytest.raises(VideoOPDError, match="videoopd migrate"):
        new_run(tmp_path)


def test_migrate_gives_the_columns_and_moves_no_row(older: Run, tmp_path: Path) -> None:
    folder = older.tables.folder
    before = {
        name: lance.dataset(folder / f"{name}.lance").to_table().to_pylist() for name in LATER
    }
    run = Run.open(older.path)
    new = {NEW_TABLE: TABLES[NEW_TABLE].schema.names}
    assert run.migrate() == LATER | new
    assert run.migrate() == {}
    assert set(lance.dataset(folder / "evaluations.lance").schema.names) == set(
        TABLES["evaluations"].schema.names
    )
    for name, columns in LATER.items():
        rows = lance.dataset(folder / f"{name}.lance").to_table().to_pylist()
        assert rows == [row | dict.fromkeys(columns) for row in before[name]]
    again = new_run(tmp_path)
    one = one_of_each()["evaluations"]
    assert again.append("evaluations", [replace(one, policy_version=7)], stage="evaluate") == 1
    assert again.append("rollouts", [rollout(1, engine_mismatch=0.25)]) == 1
    assert [r.engine_mismatch for r in again.read("rollouts", Rollout)] == [None, 0.25]
    assert again.scan("rollouts").collect().columns == TABLES["rollouts"].schema.names


def test_the_command(older: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["migrate", str(older.path)]) == 0
    assert f"format {OLDER} -> {SCHEMA_VERSION}" in capsys.readouterr().out
    assert main(["migrate", str(older.path)]) == 0
    assert "nothing was changed" in capsys.readouterr().out


def test_a_tag_from_before_is_read_after(older: Run) -> None:
    tag = f"format-{OLDER}"
    run = Run.open(older.path)
    run.migrate()
    (row,) = run.tables.read("rollouts", Rollout, version=tag)
    assert row.engine_mismatch is None


def test_finished_rounds_are_finished_before_and_after(older: Run) -> None:
    tags = {f"round-{number}" for number in (1, 2)}
    for table in older.tables.folder.glob("*.lance"):
        for tag in tags:
            lance.dataset(table).tags.create(tag, 1)
    assert Run.open(older.path).finished_rounds() == [1, 2]
    Run.open(older.path, round=1)
    Run.open(older.path).migrate()
    assert Run.open(older.path).finished_rounds() == [1, 2]
    assert Run.open(older.path, round=2).scan(NEW_TABLE).collect().is_empty()


def test_a_killed_migration_goes_on(older: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    run = Run.open(older.path)
    monkeypatch.setattr("storage.tables.older_formats.write_json", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        run.migrate()
    monkeypatch.undo()
    assert Run.open(older.path).migrate() == {}
    assert Tables.open(older.tables.folder).format == SCHEMA_VERSION


def test_the_audit_knows_a_migration_from_a_change_of_values(older: Run) -> None:
    folder = older.tables.folder
    Run.open(older.path).migrate()
    newest = lance.dataset(folder / "evaluations.lance").version
    assert history.commit(lance.dataset(folder / "evaluations.lance"), newest).operation in (
        "Project", "Merge"
    )  # fmt: skip
    assert history.only_absent_columns(folder, "evaluations", newest)
    newest = lance.dataset(folder / "rollouts.lance").version
    assert history.commit(lance.dataset(folder / "rollouts.lance"), newest).operation == "Merge"
    assert history.only_absent_columns(folder, "rollouts", newest)
    dataset = lance.dataset(folder / "updates.lance")
    dataset.drop_columns(["stopped_early"])
    dataset.add_columns({"stopped_early": "'never'"})
    newest = lance.dataset(folder / "updates.lance").version
    assert history.commit(lance.dataset(folder / "updates.lance"), newest).operation == "Merge"
    assert not history.only_absent_columns(folder, "updates", newest)


@pytest.mark.parametrize(
    "change",
    [
        lambda rows: rows.drop_columns(["text"]),
        lambda rows: rows.append_column("mine", pa.array([1] * rows.num_rows)),
        lambda rows: rows.set_column(
            rows.schema.get_field_index("seed"), "seed", pa.array(["1"] * rows.num_rows)
        ),
    ],
    ids=["a needed column is absent", "a column of somebody's", "another type"],
)
def test_what_no_migration_mends_is_named(
    older: Run, change: Callable[[pa.Table], pa.Table]
) -> None:
    uri = older.tables.folder / "rollouts.lance"
    rows = change(lance.dataset(uri).to_table())
    shutil.rmtree(uri)
    lance.write_dataset(rows, uri, mode="create")
    with pytest.raises(VideoOPDError, match=r"columns of .*rollouts.lance are not those of"):
        Run.open(older.path).rollouts()
    with pytest.raises(VideoOPDError, match=r"rollouts.lance in .* has other columns"):
        Run.open(older.path).migrate()
