"""Append-only Lance tables with an idempotency key and one writer at a time.

What Lance does not give and this file adds: tables that exist from the start (creating one, or
appending to a missing one, is not atomic), no duplicate of a key (Lance's own merge duplicates
under concurrency), a lock that names its holder, and compaction that does not rewrite the table
each round.
Lance is not fork-safe: start worker processes with `spawn`.
"""

from __future__ import annotations

import shutil
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self, TypeVar

import pyarrow as pa

from opd_core.types import VideoOPDError
from storage import locks
from storage.files import disk_troubles, make_folder, sync_folder, write_json
from storage.tables import older_formats, place
from storage.tables.columns import Column
from storage.tables.place import FORMAT_FILE, PLACE
from storage.tables.provenance import Provenance, git_commit
from storage.tables.records import from_rows, to_table
from storage.tables.schemas import SCHEMA_VERSION, TABLES, TableSpec

if TYPE_CHECKING:
    import lance
    import polars as pl

Record = TypeVar("Record")
Key = str | int | tuple[object, ...]

LOCK_TIMEOUT_SECONDS = 120.0
COMPACT_ABOVE_FRAGMENTS = 16
BATCH_ROWS, BATCH_BYTES = 16_384, 2**24
"""Of `Tables.batches`: rows of a batch, and bytes read from files before they are asked for."""
KEPT_BYTES = 2**21
"""The most that an opened run keeps of manifests and of files' footers, and as much of indices.
Eight times as much opens no table faster, and a viewer of a million rollouts held 25 MiB more."""
RECORDS_AT_ONCE = 64
"""Of `Tables.read_at`: as records their prompts and top-k take 20 times what they do in columns."""
PLACE_IN_TABLE = "place_in_table"
"""0, 1, ... of a row in a version of its table: the first that was written, the second, ..."""
_ADDRESS = "_rowaddr"
ROWS_PER_FRAGMENT = 1024
"""Fragments of this size are left alone by compaction. Round tags keep what a compaction replaced,
so a compaction that rewrote the table each round would cost disk in the square of the rounds."""


class Tables:
    """The tables of one run, in `folder`. Use `create` once and `open` afterwards."""

    def __init__(self, folder: Path, format: int = SCHEMA_VERSION) -> None:
        self.folder = folder
        self.format = format
        self.names = tuple(TABLES)
        """The tables that are on disk: all, but in a run of an older format."""
        if format < SCHEMA_VERSION:
            self.names = tuple(n for n in TABLES if place.is_there(folder, n))
        self._absent: dict[tuple[str, int], list[Column]] = {}

    @cached_property
    def _session(self) -> lance.Session:
        """A round opens its tables hundreds of times, and what Lance reads for it never changes."""
        import lance

        return lance.Session(KEPT_BYTES, KEPT_BYTES)

    @classmethod
    def create(cls, folder: Path, store: str | None = None) -> Self:
        """Every table, empty, in `folder`, or below `store` (`s3://bucket/prefix`), which the
        folder then names; a folder that has them already is opened.

        Built aside and renamed, so that a killed `create` leaves no folder. In a store it may leave
        empty tables, which no run names.
        """
        import lance

        if folder.exists():
            return cls.open(folder)
        aside = folder.with_name(f".{folder.name}.creating-{uuid.uuid4().hex}")
        try:
            with disk_troubles(folder.parent), place.answering(str(store)):
                make_folder(aside)
                at = place.new_place(folder, store)
                for spec in TABLES.values():
                    lance.write_dataset(
                        spec.schema.empty_table(), f"{at or aside}/{spec.name}.lance", mode="create"
                    )
                write_json(
                    aside / FORMAT_FILE,
                    {
                        "schema_version": SCHEMA_VERSION,
                        "created_at": datetime.now(UTC).isoformat(),
                        "git_commit": git_commit(),
                        "lance": lance.__version__,
                        **({PLACE: at} if at else {}),
                    },
                )
                try:
                    aside.rename(folder)
                except OSError:
                    if not (folder / FORMAT_FILE).exists():  # else: made by another process
                        raise
                sync_folder(folder.parent)
        finally:
            shutil.rmtree(aside, ignore_errors=True)
        return cls.open(folder)

    @classmethod
    def open(cls, folder: Path) -> Self:
        """The tables in `folder`. Raises `VideoOPDError` when they are of a newer format.

        Those of an older one are read, what they have not as null, and not written.
        """
        return cls(folder, older_formats.format_of(folder))

    def scan(self, name: str, version: int | str | None = None) -> pl.LazyFrame:
        """The table as a polars LazyFrame, at a version number or tag (None: as it is now).

        Filters on plain columns and the choice of columns are done by Lance, on disk.
        """
        import polars as pl

        dataset, spec = self._dataset(name, version), _spec(name)
        missing = self._missing_columns(spec, dataset)
        return older_formats.with_nulls(pl.scan_pyarrow_dataset(dataset), spec, missing)

    def read(
        self,
        name: str,
        record: type[Record],
        filter: pl.Expr | None = None,
        version: int | str | None = None,
        without: Sequence[str] = (),
    ) -> list[Record]:
        """The rows as records, in the order they were written.

        `without` are optional columns that stay on disk; they come as None.
        """
        own = _columns_read(name, record, without)
        frame = self.scan(name, version)
        if filter is not None:
            frame = frame.filter(filter)
        return from_rows(record, frame.select(own).collect().to_arrow())

    def read_at(
        self,
        name: str,
        record: type[Record],
        places: Sequence[int],
        version: int | str | None = None,
        without: Sequence[str] = (),
    ) -> Iterator[Record]:
        """The rows at these places as records, in their order, some at a time; nothing else is
        read, however large the table is. `without` as for `read`. Not for tables of an older
        format."""
        own = _columns_read(name, record, without)
        dataset = self._dataset(name, version) if places else None
        for start in range(0, len(places), RECORDS_AT_ONCE):
            part = list(places[start : start + RECORDS_AT_ONCE])
            assert dataset is not None
            yield from from_rows(record, dataset.take(part, columns=own))

    def places(
        self,
        name: str,
        columns: Sequence[str],
        version: int | str | None = None,
        where: str | None = None,
    ) -> pl.DataFrame:
        """`columns` of some rows, in the order they were written, and the `PLACE_IN_TABLE` of each,
        for `read_at` and `take` at that version. `where` as for `batches`."""
        import polars as pl

        dataset = self._dataset(name, version)
        scanner = dataset.scanner(
            columns=list(columns), batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1,
            io_buffer_size=BATCH_BYTES, scan_in_order=True, filter=where, with_row_address=True,
        )  # fmt: skip
        found = pl.DataFrame(pl.from_arrow(scanner.to_table()))
        first: dict[int, int] = {}
        rows = 0
        for fragment in dataset.get_fragments():
            first[fragment.fragment_id] = rows
            rows += fragment.count_rows()
        address = pl.col(_ADDRESS)  # number of the fragment, then of the row in it; none is deleted
        before = (address // 2**32).replace_strict(first, return_dtype=pl.Int64)
        return found.with_columns((before + address % 2**32).alias(PLACE_IN_TABLE)).drop(_ADDRESS)

    def batches(
        self,
        name: str,
        columns: Sequence[str],
        version: int | str | None = None,
        where: str | None = None,
    ) -> Iterator[pl.DataFrame]:
        """The table in the order it was written, some rows at a time: in memory is what is asked of
        two batches, however many rows there are. `where`: which rows, in Lance's SQL. Not for
        tables of an older format."""
        import polars as pl

        scanner = self._dataset(name, version).scanner(
            columns=list(columns), batch_size=BATCH_ROWS, batch_readahead=2, fragment_readahead=1,
            io_buffer_size=BATCH_BYTES, scan_in_order=True, filter=where,
        )  # fmt: skip
        for batch in scanner.to_batches():
            yield pl.DataFrame(pl.from_arrow(batch))

    def take(
        self, name: str, places: Sequence[int], columns: Sequence[str],
        version: int | str | None = None,
    ) -> pl.DataFrame:  # fmt: skip
        """The rows at these places (0: the first that was written), in the order of `places`."""
        import polars as pl

        found = self._dataset(name, version).take(list(places), columns=list(columns))
        return pl.DataFrame(pl.from_arrow(found))

    def append(
        self,
        name: str,
        records: Sequence[object],
        provenance: Provenance,
        timeout: float = LOCK_TIMEOUT_SECONDS,
    ) -> int:
        """Appends the records whose key has no row of this take yet, in one commit; how many.

        Killed half-way it leaves the table as it was. Raises `VideoOPDError` for a bad value, a
        writer that does not let go within `timeout` seconds, a full disk.
        """
        import lance

        spec = _spec(name)
        if spec.writer not in (None, provenance.stage):
            raise ValueError(f"{name} is written by {spec.writer!r}, not {provenance.stage!r}")
        older_formats.refuse_to_write(self.folder, self.format)
        if not records:
            return 0
        rows = to_table(spec, records)
        with disk_troubles(self.folder), self._locked(name, provenance.stage, timeout):
            dataset = self._dataset(name)
            self._refuse_to_write(spec, dataset)
            fresh = _without_known(rows, dataset, spec.key, provenance.take)
            if fresh.num_rows:
                lance.write_dataset(
                    _stamped(fresh, spec, provenance).select(dataset.schema.names),
                    dataset,
                    mode="append",
                    transaction_properties=provenance.transaction_properties(),
                )
        return int(fresh.num_rows)

    def refuse_to_write(self) -> None:
        """Raises `VideoOPDError` where the tables have to be brought up first."""
        for name in self.names:
            self._refuse_to_write(_spec(name), self._dataset(name))

    def _refuse_to_write(self, spec: TableSpec, dataset: lance.LanceDataset) -> None:
        missing = self._missing_columns(spec, dataset)
        older_formats.refuse_to_write(self.folder, self.format, missing)

    def missing(self, name: str, keys: Sequence[Key]) -> list[Key]:
        """The keys, of `keys`, that have no row, in order. A key of several columns is a tuple."""
        columns = _spec(name).key
        known = self._dataset(name).to_table(columns=list(columns))
        values = [known.column(column).to_pylist() for column in columns]
        present = set(values[0]) if len(columns) == 1 else set(zip(*values, strict=True))
        return [key for key in keys if key not in present]

    def compact(self, name: str, timeout: float = LOCK_TIMEOUT_SECONDS) -> None:
        """Joins small fragments once there are more than `COMPACT_ABOVE_FRAGMENTS` of them."""
        with disk_troubles(self.folder), self._locked(name, "compact", timeout):
            dataset = self._dataset(name)
            small = [f for f in dataset.get_fragments() if f.count_rows() < ROWS_PER_FRAGMENT]
            if len(small) > COMPACT_ABOVE_FRAGMENTS:
                dataset.optimize.compact_files(
                    target_rows_per_fragment=ROWS_PER_FRAGMENT, num_threads=1
                )

    def tag(self, name: str, tag: str, timeout: float = LOCK_TIMEOUT_SECONDS) -> int:
        """Names the table's current version; a tag that exists stays where it is.

        Returns the version the tag names. A tagged version is kept for ever.
        """
        with disk_troubles(self.folder), self._locked(name, "tag", timeout):
            dataset = self._dataset(name)
            tags: dict[str, Any] = dataset.tags.list()
            if tag in tags:
                return int(tags[tag]["version"])
            dataset.tags.create(tag, dataset.version)
            return int(dataset.version)

    def version(self, name: str, version: int | str | None = None) -> int:
        """The number of a tag's version, or of the current one; quicker than a scan."""
        return int(self._dataset(name, version).version)

    def stored(self, name: str, version: int | str | None = None) -> lance.LanceDataset:
        """The table as Lance has it, to be read; of an older format without columns that came
        since."""
        return self._dataset(name, version)

    def versions(self) -> dict[str, int]:
        """The current version of every table."""
        return {name: self.version(name) for name in TABLES}

    @contextmanager
    def _locked(self, name: str, stage: str, timeout: float) -> Iterator[None]:
        """As the table's one writer, who is told of a store that no longer answers."""
        held = locks.held(self.folder / ".locks" / f"{name}.lock", stage, timeout)
        with held, place.answering(place.uri(self.folder, name)):
            yield

    def _dataset(self, name: str, version: int | str | None = None) -> lance.LanceDataset:
        spec = _spec(name)
        if name not in self.names:
            return older_formats.nothing(spec)
        try:
            dataset = place.opened(self.folder, name, version, self._session)
        except (ValueError, OSError) as error:
            if "not found" not in str(error).lower():
                raise
            what = f"table {name} of" if version is None else f"version {version} of {name} in"
            raise VideoOPDError(
                f"{what} {self.folder} is missing; restore it from a copy of the run"
            ) from None
        self._missing_columns(spec, dataset)
        return dataset

    def _missing_columns(self, spec: TableSpec, dataset: lance.LanceDataset) -> list[Column]:
        """Those that came after the table was written. Raises where it differs in more."""
        opened = spec.name, int(dataset.version)
        if opened not in self._absent:
            missing = older_formats.absent(spec, dataset.schema)
            if missing is None:
                raise VideoOPDError(
                    f"the columns of {place.uri(self.folder, spec.name)} are not those of format"
                    f" {self.format}; use the program that wrote them, or start a new run in"
                    " another folder"
                )
            self._absent[opened] = missing
        return self._absent[opened]


def _spec(name: str) -> TableSpec:
    try:
        return TABLES[name]
    except KeyError:
        known = ", ".join(TABLES)
        raise VideoOPDError(f"there is no table {name!r}; the tables are: {known}") from None


def _columns_read(name: str, record: type, without: Sequence[str]) -> list[str]:
    if _spec(name).record is not record:
        raise TypeError(f"table {name!r} holds {_spec(name).record.__name__}, not {record}")
    columns = _spec(name).own_columns
    if required := [c.name for c in columns if c.name in without and not c.optional]:
        raise ValueError(f"{name} cannot be read without {required}")
    return [c.name for c in columns if c.name not in without]


def _without_known(
    rows: pa.Table, dataset: lance.LanceDataset, key: Sequence[str], take: int
) -> pa.Table:
    """Rows whose key is neither in the take nor earlier among the rows (null equals null)."""
    import polars as pl

    keys = pl.DataFrame(pl.from_arrow(rows.select(key))).with_row_index("__row")
    known = pl.DataFrame(pl.from_arrow(dataset.to_table(columns=[*key, "take"])))
    known = known.filter(pl.col("take") == take)  # quicker than Lance's filter
    fresh = keys.unique(subset=list(key), keep="first", maintain_order=True).join(
        known, on=list(key), how="anti", nulls_equal=True, maintain_order="left"
    )
    if fresh.height == rows.num_rows:
        return rows
    return rows.take(pa.array(fresh.get_column("__row").to_list(), pa.int64()))


def _stamped(rows: pa.Table, spec: TableSpec, provenance: Provenance) -> pa.Table:
    stamp = {
        "run_id": provenance.run_id,
        "config_hash": provenance.config_hash,
        "git_commit": provenance.git_commit,
        "attempt": provenance.attempt,
        "written_at": datetime.now(UTC),
        "take": provenance.take,
    }
    arrays = [*rows.columns]
    for name, value in stamp.items():
        arrays.append(pa.array([value] * rows.num_rows, spec.schema.field(name).type))
    return pa.Table.from_arrays(arrays, schema=spec.schema)
