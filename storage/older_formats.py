"""Tables that an older program wrote: read as they are, written again once they were brought up.

A format that only added optional columns can be read by every later one: what is absent is null. So
a run of an older format opens for all who read. To go on with it, `migrate` adds the columns on
disk, which writes no rows; the versions before and after keep a tag, with which the audit proves
that nothing else changed.
"""

from __future__ import annotations

import json
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pyarrow as pa

from opd_core.types import VideoOPDError
from storage import locks
from storage.files import disk_troubles, write_json
from storage.schemas import SCHEMA_VERSION, TABLES, Column, TableSpec

if TYPE_CHECKING:
    import lance
    import polars as pl

FORMAT_FILE = "format.json"


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


def absent(spec: TableSpec, schema: pa.Schema) -> list[Column] | None:
    """The optional columns of `spec` that a table has not; None where it differs in more."""
    wanted = {column.name: column for column in spec.columns}
    if not set(schema.names) <= set(wanted):
        return None
    for field in schema:
        if field.type != wanted[field.name].type:
            return None
    missing = [column for name, column in wanted.items() if name not in schema.names]
    return missing if all(column.optional for column in missing) else None


def with_nulls(frame: pl.LazyFrame, spec: TableSpec, missing: list[Column]) -> pl.LazyFrame:
    """The table with all columns of `spec`, in its order; those it has not are null."""
    if not missing:
        return frame.select(spec.schema.names)
    import polars as pl

    types = pl.DataFrame(pl.from_arrow(spec.schema.empty_table())).schema
    nulls = [pl.lit(None, dtype=types[column.name]).alias(column.name) for column in missing]
    return frame.with_columns(nulls).select(spec.schema.names)


def refuse_to_write(folder: Path, version: int) -> None:
    """Raises `VideoOPDError` where the tables in `folder` have to be brought up first."""
    if version < SCHEMA_VERSION:
        raise VideoOPDError(
            f"the tables in {folder} have format {version} and this program writes format"
            f" {SCHEMA_VERSION}; bring them up with `videoopd migrate {folder.parent}`, or go on"
            " with the program that wrote them"
        )


def migrate(folder: Path) -> dict[str, list[str]]:
    """Brings the tables in `folder` up to SCHEMA_VERSION: table -> the columns it was given.

    No row is written or moved. Killed at any moment, it goes on when it is called again. Call it as
    the run's only writer. Raises `VideoOPDError` for tables that are not of an older format.
    """
    import lance

    version = format_of(folder)
    given: dict[str, list[str]] = {}
    if version == SCHEMA_VERSION:
        return given
    for name, spec in TABLES.items():
        lock = locks.held(folder / ".locks" / f"{name}.lock", "migrate", 120.0)
        with disk_troubles(folder), lock:
            dataset = lance.dataset(folder / f"{name}.lance")
            missing = absent(spec, dataset.schema)
            if missing is None:
                raise VideoOPDError(
                    f"{name}.lance in {folder} has other columns than formats {version} to"
                    f" {SCHEMA_VERSION}; use the program that wrote it"
                )
            before, after = f"format-{version}", f"format-{SCHEMA_VERSION}"
            if missing:
                _tag(dataset, before)
                dataset.add_columns([column.field for column in missing])
                dataset = lance.dataset(folder / f"{name}.lance")
                given[name] = [column.name for column in missing]
            _tag(dataset, after)
    content = json.loads((folder / FORMAT_FILE).read_text())
    step = {"from": version, "at": datetime.now(UTC).isoformat()}
    content["migrations"] = [*content.get("migrations", []), step]
    with disk_troubles(folder):
        write_json(folder / FORMAT_FILE, {**content, "schema_version": SCHEMA_VERSION})
    return given


def _tag(dataset: lance.LanceDataset, tag: str) -> None:
    if tag not in dataset.tags.list():
        dataset.tags.create(tag, dataset.version)
