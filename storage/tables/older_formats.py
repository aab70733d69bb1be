"""Tables that an older program wrote: read as they are, written again once they were brought up.

A format that only added optional columns can be read by every later one: what is absent is null. So
a run of an older format opens for all who read. To go on with it, `migrate` adds the columns on
disk, which writes no rows; the versions before and after keep a tag, with which the audit proves
that nothing else changed.
"""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from opd_core.types import VideoOPDError
from storage import locks
from storage.files import disk_troubles, write_json
from storage.tables import place
from storage.tables.columns import Column
from storage.tables.place import FORMAT_FILE
from storage.tables.schemas import RETIRED, SCHEMA_VERSION, TABLES, TableSpec

if TYPE_CHECKING:
    import lance
    import polars as pl


def format_of(folder: Path) -> int:
    """The format of the tables in `folder`. Raises `VideoOPDError` where there are none, and for a
    format that is newer than this program."""
    try:
        content = json.loads((folder / FORMAT_FILE).read_text())
        version = int(content["schema_version"])
    except FileNotFoundError:
        raise VideoOPDError(
            f"{folder} holds no tables ({FORMAT_FILE} is missing);"
            " give the folder of a run, or create one with `videoopd`"
        ) from None
    except (ValueError, KeyError, TypeError):
        raise VideoOPDError(
            f"{folder / FORMAT_FILE} is damaged; restore it from a copy of the run"
        ) from None
    if version > SCHEMA_VERSION:
        raise VideoOPDError(
            f"the tables in {folder} have format {version} and this program reads format"
            f" {SCHEMA_VERSION} and older; use the program that wrote them (commit"
            f" {content.get('git_commit')}) or a newer one"
        )
    return version


def older_rows_end(folder: Path) -> datetime | None:
    """Rows written before it are of an older format, and an older program read their answers; None
    where there are none such."""
    if format_of(folder) < SCHEMA_VERSION:
        return datetime.now(UTC)
    steps = json.loads((folder / FORMAT_FILE).read_text()).get("migrations", [])
    return datetime.fromisoformat(steps[-1]["at"]) if steps else None


def absent(spec: TableSpec, schema: pa.Schema) -> list[Column] | None:
    """The optional columns of `spec` that a table has not; None where it differs in more."""
    wanted = {column.name: column for column in spec.columns}
    here = {f.name: f.type for f in schema if f.name not in RETIRED.get(spec.name, ())}
    if any(name not in wanted or type != wanted[name].type for name, type in here.items()):
        return None
    missing = [column for name, column in wanted.items() if name not in here]
    return missing if all(column.optional for column in missing) else None


def nothing(spec: TableSpec) -> lance.LanceDataset:
    """Stands for a table that came after the run's format: without a row."""
    import lance

    return lance.write_dataset(spec.schema.empty_table(), f"memory://{uuid.uuid4().hex}")


def with_nulls(frame: pl.LazyFrame, spec: TableSpec, missing: list[Column]) -> pl.LazyFrame:
    """The table with all columns of `spec`, in its order; those it has not are null."""
    if not missing:
        return frame.select(spec.schema.names)
    import polars as pl

    types = pl.DataFrame(pl.from_arrow(spec.schema.empty_table())).schema
    nulls = [pl.lit(None, dtype=types[column.name]).alias(column.name) for column in missing]
    return frame.with_columns(nulls).select(spec.schema.names)


def refuse_to_write(folder: Path, version: int, missing: Sequence[Column] = ()) -> None:
    """Raises `VideoOPDError` where the tables in `folder` have to be brought up first: they are of
    an older format, or of an earlier program of this one, and columns are `missing`."""
    if version < SCHEMA_VERSION or missing:
        lack = f" without {missing[0].name}" if missing else ""
        raise VideoOPDError(
            f"the tables in {folder} have format {version}{lack} and this program writes format"
            f" {SCHEMA_VERSION}; bring them up with `videoopd migrate {folder.parent}`, or go on"
            " with the program that wrote them"
        )


def migrate(folder: Path) -> dict[str, list[str]]:
    """Brings the tables in `folder` up to this program: table -> the columns it was given (of a
    table that is new, all).

    No row is written or moved. Killed at any moment, it goes on when it is called again. Call it as
    the run's only writer. Raises `VideoOPDError` for tables that are not of an older program.
    """

    version = format_of(folder)
    given: dict[str, list[str]] = {}
    for name, spec in TABLES.items():
        lock = locks.held(folder / ".locks" / f"{name}.lock", "migrate", 120.0)
        with disk_troubles(folder), lock:
            if not place.is_there(folder, name):
                if version < SCHEMA_VERSION:  # else it is lost, and whoever reads it says so
                    _create(folder, spec)
                    given[name] = [column.name for column in spec.columns]
                continue
            dataset = place.opened(folder, name)
            if dataset.version == 1 and version < SCHEMA_VERSION:
                _tag_rounds(folder, dataset)
            missing = absent(spec, dataset.schema)
            if missing is None:
                raise VideoOPDError(
                    f"{name}.lance in {folder} has other columns than formats {version} to"
                    f" {SCHEMA_VERSION}; use the program that wrote it"
                )
            retired = [c for c in RETIRED.get(name, ()) if c in dataset.schema.names]
            if missing or retired:
                _tag(dataset, f"format-{version}")
            if retired:
                dataset.drop_columns(retired)
                dataset = place.opened(folder, name)
            if missing:
                dataset.add_columns([column.field for column in missing])
                dataset = place.opened(folder, name)
                given[name] = [column.name for column in missing]
            if missing or retired or version < SCHEMA_VERSION:
                _tag(dataset, f"format-{SCHEMA_VERSION}")
    if version == SCHEMA_VERSION:
        return given
    content = json.loads((folder / FORMAT_FILE).read_text())
    step = {"from": version, "at": datetime.now(UTC).isoformat()}
    content["migrations"] = [*content.get("migrations", []), step]
    with disk_troubles(folder):
        write_json(folder / FORMAT_FILE, {**content, "schema_version": SCHEMA_VERSION})
    return given


def _create(folder: Path, spec: TableSpec) -> None:
    """An empty table, whole or not at all; it was as empty when each of the rounds was finished.

    A store has no rename: a table that was killed before its tags gets them from the next call.
    """
    import lance

    in_store = place.store_of(folder) is not None
    aside = folder / f".{spec.name}.creating-{uuid.uuid4().hex}"
    where = place.uri(folder, spec.name) if in_store else str(aside)
    try:
        _tag_rounds(folder, lance.write_dataset(spec.schema.empty_table(), where, mode="create"))
        if not in_store:
            aside.rename(folder / f"{spec.name}.lance")
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def _tag_rounds(folder: Path, empty: lance.LanceDataset) -> None:
    for tag in place.opened(folder, "updates").tags.list():
        if tag.startswith("round-"):
            _tag(empty, tag)


def _tag(dataset: lance.LanceDataset, tag: str) -> None:
    """Keeps the version; where an earlier one has the tag already, its number is added."""
    tags = dataset.tags.list()
    if int(tags.get(tag, {"version": dataset.version})["version"]) != dataset.version:
        tag = f"{tag}.{dataset.version}"
    if tag not in tags:
        dataset.tags.create(tag, dataset.version)
