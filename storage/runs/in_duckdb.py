"""A run's tables and views in a DuckDB connection, as they are in `videoopd query`.

A table is Lance's own dataset at the run's version: DuckDB asks it for the columns and rows of a
query, and nothing is read before. A view is computed by polars when it is asked for, batch by batch
and only in the columns of the query; a filter on it is applied to the batches as they come.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import polars as pl
import pyarrow as pa
import pyarrow.dataset

from opd_core.types import VideoOPDError
from storage.tables.schemas import TABLES, TableSpec
from storage.tables.takes import ALL_TAKES, Hidden, Takes

if TYPE_CHECKING:
    import duckdb
    import lance
ROWS_AT_ONCE = 32_768


def connection(
    tables: Mapping[str, lance.LanceDataset], takes: Takes, views: Mapping[str, pl.LazyFrame]
) -> duckdb.DuckDBPyConnection:
    """The tables, without the rows that `takes` hides, and views by name.

    Raises `VideoOPDError` where DuckDB is not installed.
    """
    try:
        import duckdb
    except ImportError:
        raise VideoOPDError(
            "Run.duckdb() needs DuckDB, which is not installed here; install it with "
            '`pip install "videoopd[duckdb]"`'
        ) from None
    made = duckdb.connect()
    for spec in TABLES.values():
        _add_table(made, spec, tables[spec.name], takes.hidden(spec))
    for name, frame in views.items():
        made.register(name, _Lazy(frame))
    return made


def _add_table(
    made: duckdb.DuckDBPyConnection,
    spec: TableSpec,
    dataset: lance.LanceDataset,
    hidden: Sequence[Hidden],
) -> None:
    """As the run shows it, and with its superseded rows."""
    every = f"{spec.name}{ALL_TAKES}"
    columns = ", ".join(f'"{name}"' for name in spec.schema.names)
    made.register(f"{every}_stored", dataset)
    whole = f'"{every}_stored"'
    if not set(spec.schema.names) <= set(dataset.schema.names):
        # Of an older format: what it has not is null.
        made.register(f"{every}_columns", spec.schema.empty_table())
        whole = f'(FROM "{every}_columns" UNION ALL BY NAME FROM "{every}_stored")'
    made.execute(f'CREATE VIEW "{every}" AS SELECT {columns} FROM {whole}')
    where = "".join(f" AND NOT ({rows.sql()})" for rows in hidden)
    made.execute(f'CREATE VIEW "{spec.name}" AS SELECT {columns} FROM "{every}" WHERE true{where}')


class _Lazy(pa.dataset.Dataset):  # type: ignore[misc]
    """A polars frame as DuckDB asks a dataset for it: again for every query, and only when it is
    asked."""

    def __init__(self, frame: pl.LazyFrame) -> None:
        self._frame = frame
        empty = pl.DataFrame(schema=frame.collect_schema())
        self._schema = empty.to_arrow(compat_level=pl.CompatLevel.oldest()).schema

    @property
    def schema(self) -> pa.Schema:
        return self._schema

    def scanner(
        self, columns: Sequence[str] | None = None, filter: Any = None, **given: Any
    ) -> pa.dataset.Scanner:
        names = self._schema.names
        if columns is not None:  # those of the filter too, which says them in its text only
            text = "" if filter is None else str(filter)
            names = [name for name in names if name in columns or name in text] or names[:1]
        schema = pa.schema([self._schema.field(name) for name in names])
        reader = pa.RecordBatchReader.from_batches(schema, self._batches(names, schema))
        asked = None if columns is None else list(columns)
        return pa.dataset.Scanner.from_batches(reader, columns=asked, filter=filter)

    def _batches(self, names: list[str], schema: pa.Schema) -> Iterator[pa.RecordBatch]:
        for part in self._frame.select(names).collect_batches(chunk_size=ROWS_AT_ONCE):
            table = part.to_arrow(compat_level=pl.CompatLevel.oldest())
            yield from table.cast(schema).to_batches()
