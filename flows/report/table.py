"""A table of a report: words and numbers that are ready to be read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from opd_core.spans.bootstrap import Estimate

Cell = str | None
"""None: not known, or there is none."""


@dataclass(frozen=True, slots=True)
class Table:
    """Rows under a head. The first column names the row."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[Cell, ...], ...]
    words: bool = False
    """Whether its columns are words, which are read from the left, and not numbers."""
    note: str = ""
    """What is to be known to read it."""


def beside(title: str, columns: Mapping[str, Mapping[str, Cell]], note: str = "") -> Table:
    """Make a table of words with a column a mapping; a row is a key that any of them has."""
    names = list(dict.fromkeys(name for column in columns.values() for name in column))
    rows = tuple((name, *(column.get(name) for column in columns.values())) for name in names)
    return Table(title, ("", *columns), rows, words=True, note=note)


def shortened(rows: Sequence[tuple[Cell, ...]], most: int) -> tuple[tuple[Cell, ...], ...]:
    """Leave out the middle where there are more rows than `most`; a row then says how many."""
    if len(rows) <= most:
        return tuple(rows)
    head, tail = rows[: most // 4], rows[-(most - most // 4) :]
    gap = (f"… {len(rows) - most:,} more …", *[""] * (len(rows[0]) - 1))
    return (*head, gap, *tail)


def whole(value: float | None) -> Cell:
    """Write a count."""
    return None if value is None else f"{value:,.0f}"


def decimal(value: float | None, style: str = ".3f") -> Cell:
    """Write a number."""
    return None if value is None else f"{value:,{style}}"


def interval(estimate: Estimate, signed: bool = False) -> Cell:
    """Write a mean and its interval: `0.57 (0.52 to 0.61)`."""
    if estimate.value is None:
        return None
    style = "+.3f" if signed else ".3f"
    if estimate.low is None or estimate.high is None:
        return f"{estimate.value:{style}}"
    return f"{estimate.value:{style}} ({estimate.low:{style}} to {estimate.high:{style}})"
