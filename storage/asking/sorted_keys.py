"""Rows of one table found in another by keys of 64 bits: a join for tables of millions of rows.

Polars' join holds a table of hashes, 64 bytes a row, and copies every column. Here the keys of both
sides are sorted, 12 bytes a row, which takes as long; and only what is looked up is copied.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import polars as pl


class SortedKeys:
    """Keys in ascending order, and the row of each. A null is the key of nothing."""

    def __init__(self, keys: pl.Series) -> None:
        """`keys`: UInt64."""
        import numpy as np

        self.absent = keys.is_null().to_numpy() if keys.null_count() else None
        numbers = keys.fill_null(0).to_numpy()
        self.rows = np.argsort(numbers).astype(np.uint32)
        self.keys = numbers[self.rows]

    @property
    def are_different(self) -> bool:
        return not (self.keys[1:] == self.keys[:-1]).any()

    def rows_in(self, other: SortedKeys) -> pl.Series:
        """[N] UInt32, the row of `other` that has the key of each row here, null where none has.

        The keys of `other` are different, and none is null.
        """
        import numpy as np
        import polars as pl

        if not len(other.keys):
            return pl.repeat(None, len(self.keys), dtype=pl.UInt32, eager=True)
        at = np.searchsorted(other.keys, self.keys)
        at[at == len(other.keys)] = 0
        is_there = other.keys[at] == self.keys
        rows, known = np.empty(len(at), np.uint32), np.empty(len(at), bool)
        rows[self.rows] = other.rows[at]
        known[self.rows] = is_there
        if self.absent is not None:
            known &= ~self.absent
        return pl.select(pl.when(pl.Series(known)).then(pl.Series(rows))).to_series()


def found(keys: SortedKeys, table: pl.DataFrame, key: str) -> pl.DataFrame:
    """The other columns of `table`, of the row with each of `keys`; null where there is none."""
    import polars as pl

    rows = keys.rows_in(SortedKeys(table.get_column(key)))
    return table.select(pl.exclude(key).gather(rows))
