"""What is made of a table's rows, batch by batch: in memory is what is kept of all that is read."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from storage.tables.schemas import SCHEMA_VERSION, TABLES

if TYPE_CHECKING:
    import polars as pl

    from storage.runs.run import Run

PLACE = "place_in_table"
"""0, 1, ... of a row that was read; of some rows, among those."""
_TOGETHER = 4
"""Batches whose numbers are put together at a time."""


def in_batches(
    run: Run,
    name: str,
    columns: Sequence[str],
    made: Callable[[pl.DataFrame], pl.DataFrame],
    version: int | None = None,
) -> pl.DataFrame:
    """`made` of the rows of a table that are in force, of all or of the round of policy `version`.

    `made` is given the `columns` of some rows at a time and their `PLACE`; a row of its answer is
    of nothing but rows that it was given. Of tables of an older format it is given all at once.
    """
    import polars as pl

    in_force = run.in_force(name)
    needed = () if in_force is None else (str(TABLES[name].round_column), "take")
    names = list(dict.fromkeys((*columns, *needed)))
    nothing = run.scan(name, superseded=True).select(names).head(0).collect()
    parts, made_of, place = [made(nothing.with_row_index(PLACE))], [], 0
    if run.tables.format < SCHEMA_VERSION:
        rows = run.scan(name, superseded=True)
        if version is not None:
            rows = rows.filter(pl.col("policy_version") == version)
        batches = iter([rows.select(names).collect()])
    else:
        where = None if version is None else f"policy_version = {version}"
        batches = run.tables.batches(name, names, run.table_version(name), where)
    for batch in batches:
        numbered = batch.with_row_index(PLACE, offset=place)
        place += batch.height
        made_of.append(made(numbered if in_force is None else numbered.filter(in_force)))
        if len(made_of) == _TOGETHER:  # a column that is as it was read keeps all that was read
            parts.append(pl.concat(made_of, rechunk=True))
            made_of = []
    series = pl.concat([*parts, *made_of]).get_columns()
    del parts, made_of
    for i in range(len(series)):  # one after the other: the table is not there twice
        series[i] = series[i].rechunk(in_place=True)
    return pl.DataFrame(series)
