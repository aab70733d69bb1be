"""Frames whose columns a record documents: its fields are the columns, their texts the meanings."""

from __future__ import annotations

import polars as pl
import pyarrow as pa

from storage.tables.columns import columns_of


def meanings(record: type) -> dict[str, str]:
    """Column -> what it means."""
    return {column.name: column.description for column in columns_of(record)}


def schema(record: type) -> dict[str, pl.DataType]:
    """Column -> its type."""
    fields = [(column.name, column.type) for column in columns_of(record)]
    empty = pl.DataFrame(pl.from_arrow(pa.schema(fields).empty_table()))
    return dict(empty.schema)
