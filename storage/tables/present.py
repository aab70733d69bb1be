"""What the annotation files hold now: `examples`, and what `data_changes` says became of them.

`examples` keeps every annotation as it was first read, for the rows that stand on it. An annotation
that was removed, moved to the other split or given another duration since has a row of
`data_changes`; the one of the largest `sequence` says how it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from opd_core.types import DataChange

if TYPE_CHECKING:
    import polars as pl

ADDED, REMOVED, RETURNED, MOVED, CORRECTED = "added", "removed", "returned", "moved", "corrected"


def newest(changes: Iterable[DataChange]) -> dict[str, DataChange]:
    """item id -> the last thing that became of it."""
    return {c.item_id: c for c in sorted(changes, key=lambda c: c.sequence)}


def present(scan: Callable[[str], pl.LazyFrame]) -> pl.LazyFrame:
    """The rows of `examples` that the files hold; split, duration and source as they are there."""
    import polars as pl

    return _with_changes(scan).filter(pl.col("is_present")).drop("is_present")


def ids_of_split(scan: Callable[[str], pl.LazyFrame], split: str) -> pl.LazyFrame:
    """example_id of what `present` has in a split; what is in no other is left on disk."""
    import polars as pl

    last = scan("data_changes").sort("sequence").group_by("item_id").agg(pl.col("split").last())
    changed = last.select(pl.col("item_id").alias("example_id"), "split")
    read = scan("examples").filter(pl.col("split") == split).select("example_id")
    as_read = read.join(changed, on="example_id", how="anti")
    return pl.concat([as_read, changed.filter(pl.col("split") == split).select("example_id")])


def latest(scan: Callable[[str], pl.LazyFrame]) -> pl.LazyFrame:
    """All rows of `examples`, as the files held them last."""
    return _with_changes(scan).drop("is_present")


def _with_changes(scan: Callable[[str], pl.LazyFrame]) -> pl.LazyFrame:
    import polars as pl

    names = ("split", "duration", "source")
    last = (
        scan("data_changes")
        .select("sequence", "item_id", *names)
        .sort("sequence")
        .group_by("item_id")
        .agg(
            pl.lit(True).alias("changed"),
            pl.col("split").last().alias("split_now"),
            *(pl.col(name).drop_nulls().last().alias(f"{name}_now") for name in names[1:]),
        )
    )
    return (
        scan("examples")
        .join(last, left_on="example_id", right_on="item_id", how="left", maintain_order="left")
        .with_columns(
            is_present=pl.col("changed").is_null() | pl.col("split_now").is_not_null(),
            split=pl.coalesce("split_now", "split"),
            duration=pl.coalesce("duration_now", "duration"),
            source=pl.coalesce("source_now", "source"),
        )
        .drop("changed", *(f"{name}_now" for name in names))
    )
