"""What the runs could not use, and why."""

from __future__ import annotations

from collections.abc import Sequence

from flows.report.side import Side
from flows.report.table import Cell, Table, shortened, whole
from flows.stage.left_out import left_out

REASONS_SHOWN = 30


def lost(sides: Sequence[Side]) -> tuple[Table, ...]:
    """Count the quarantine of each run by kind of reason; a run that lost nothing has no rows."""
    return tuple(_table(side) for side in sides)


def _table(side: Side) -> Table:
    rows: list[tuple[Cell, ...]] = [
        (item.stage, whole(item.count), item.reason()) for item in left_out(side.run)
    ]
    head = ("stage", "items", "reason")
    return Table(
        f"Left out by {side.name}", head, shortened(rows, REASONS_SHOWN), words=True,
        note="" if rows else "Nothing was left out.",
    )  # fmt: skip
