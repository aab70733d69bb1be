"""What the rounds took, by stage: seconds, CPU seconds, tokens, memory."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from flows.charts.bars import Stack, stacked_bars
from flows.charts.svg import Svg
from flows.console.report import size_text
from flows.report.side import Side
from flows.report.table import Cell, Table, decimal, whole
from storage.stages import place

ROUNDS_DRAWN = 40


@dataclass(frozen=True, slots=True)
class Costs:
    """A table and charts a run."""

    tables: tuple[Table, ...]
    charts: tuple[Svg, ...]


def costs(sides: Sequence[Side]) -> Costs:
    """Add up what the stages took, as far as the rows say."""
    known = [side for side in sides if not side.stages.is_empty()]
    charts = (
        _chart(side, column, words, unit, len(known) > 1)
        for column, words, unit in (("seconds", "Seconds", "s"), ("tokens", "Tokens", "tokens"))
        for side in known
    )
    return Costs(tuple(_table(side) for side in known), tuple(charts))


def _chart(side: Side, column: str, words: str, unit: str, named: bool) -> Svg:
    rows = side.stages.drop_nulls(column).filter(
        pl.col("round") > pl.col("round").max() - ROUNDS_DRAWN
    )
    names = sorted(rows["stage"].unique(), key=place)
    stacks = [
        Stack(
            str(number), dict.fromkeys(names) | dict(of_round.select("stage", column).iter_rows())
        )
        for (number,), of_round in rows.group_by("round", maintain_order=True)
    ]
    of = f" of {side.name}" if named else ""
    return stacked_bars(stacks, title=f"{words} by stage{of}", x_label="round", y_label=unit)


def _table(side: Side) -> Table:
    total = _sum(side.stages, "seconds") or 0.0
    rows: list[tuple[Cell, ...]] = []
    for name in sorted(side.stages["stage"].unique(), key=place):
        rows.append(_row(name, side.stages.filter(pl.col("stage") == name), total))
    rows.append(_row("all", side.stages, total))
    head = ("stage", "seconds", "share", "CPU seconds", "tokens", "tokens/s", "peak memory")
    note = "" if side.stages["cpu_seconds"].count() else (
        "CPU seconds are not known: only studies and benches record them."
    )  # fmt: skip
    return Table(f"Cost of {side.name}", head, tuple(rows), note=note)


def _row(name: str, rows: pl.DataFrame, total: float) -> tuple[Cell, ...]:
    """Absent in all of the rows is absent; tokens a second are of those rows that have tokens."""
    seconds, tokens, cpu = (_sum(rows, column) for column in ("seconds", "tokens", "cpu_seconds"))
    working = _sum(rows.drop_nulls("tokens"), "seconds")
    per_second = tokens / working if tokens is not None and working else None
    peak = rows["peak_memory"].max()
    return (
        name, decimal(seconds, ".1f"),
        decimal(seconds / total, ".1%") if seconds is not None and total else None,
        decimal(cpu, ".1f"), whole(tokens), whole(per_second),
        size_text(peak, 1) if isinstance(peak, int) else None,
    )  # fmt: skip


def _sum(rows: pl.DataFrame, column: str) -> float | None:
    known = rows[column].drop_nulls()
    return float(known.sum()) if len(known) else None
