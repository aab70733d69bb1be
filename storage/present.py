"""What the annotation files hold now: `examples`, and what `data_changes` says became of them.

`examples` keeps every annotation as it was first read, for the rows that stand on it. An annotation
that was removed, moved to the other split or given another duration since has a row of
`data_changes`; the one of the largest `sequence` says how it is now.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import TYPE_CHECKING

from opd_core.types import DataChange, GroundingExample

if TYPE_CHECKING:
    import polars as pl

ADDED, REMOVED, RETURNED, MOVED, CORRECTED = "added", "removed", "returned", "moved", "corrected"


def newest(changes: Iterable[DataChange]) -> dict[str, DataChange]:
    """item id -> the last thing that became of it."""
    return {c.item_id: c for c in sorted(changes, key=lambda c: c.sequence)}


def as_now(
    examples: Iterable[GroundingExample], changes: Iterable[DataChange]
) -> list[GroundingExample]:
    """The examples that the files hold, as they are there, in the order of `examples`."""
    last = newest(changes)
    found = []
    for example in examples:
        change = last.get(example.example_id)
        if change is None:
            found.append(example)
        elif change.split is not None:
            found.append(
                replace(
                    example,
                    split=change.split,
                    duration=change.duration or example.duration,
                    source=change.source or example.source,
                )
            )
    return found


def present(scan: Callable[[str], pl.LazyFrame]) -> pl.LazyFrame:
    """The rows of `examples` that the files hold; split, duration and source as they are there."""
    import polars as pl

    last = (
        scan("data_changes")
        .select("sequence", "item_id", "change", "split", "duration", "source")
        .group_by("item_id")
        .agg(pl.all().sort_by("sequence").last())
    )
    changed = pl.col("change").is_not_null()
    return (
        scan("examples")
        .join(
            last,
            left_on="example_id",
            right_on="item_id",
            how="left",
            suffix="_now",
            maintain_order="left",
        )
        .filter(~changed | pl.col("split_now").is_not_null())
        .with_columns(
            pl.coalesce(f"{name}_now", name).alias(name) for name in ("split", "duration", "source")
        )
        .drop("sequence", "change", "split_now", "duration_now", "source_now")
    )
