"""The points of a run, made of what `flows/numbers` reads in its tables."""

from __future__ import annotations

import math
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import polars as pl

from flows.numbers.rounds import reasons, rounds
from flows.numbers.stages import stages
from flows.numbers.steps import steps
from flows.tracking import names
from opd_core.tracker import Point

if TYPE_CHECKING:
    from storage.runs.run import Run

GIB = 2**30
EVALUATE = "evaluate"
"""What it took is in the row of the round after; sums that had it would change then."""


def of_steps(run: Run) -> Iterator[Point]:
    """One an optimiser step, those of a running update too."""
    rows = run.updates().select("policy_version", "written_at").collect().iter_rows()
    committed: dict[int, datetime] = dict(rows)
    now = datetime.now(UTC)
    for row in steps(run).iter_rows(named=True):
        values = {name.name: row[name.column] for name in names.STEPS}
        if row["seconds"]:
            values["perf/throughput"] = row["tokens"] / row["seconds"]
        at = committed.get(row["policy_version"], now)
        yield Point("step", row["run_step"], row["run_step"], _known(values), at)


def of_rounds(run: Run) -> Iterator[Point]:
    """One a round that is finished, and the base policy (round 0) once a round has begun."""
    complete = [*run.finished_rounds()] if run.round is None else range(1, run.round + 1)
    if not run.draws().head(1).collect().is_empty():
        complete = [0, *complete]
    frame = rounds(run)
    why, took = reasons(run), stages(run)
    training = run.present().filter(pl.col("split") == "train").select(pl.len()).collect().item()
    done, tokens, drawn = 0, 0, 0
    for row in frame.iter_rows(named=True):
        version = row["policy_version"]
        mine = took.filter(pl.col("round") == version)
        trained = mine.filter(pl.col("stage") != EVALUATE)
        of_round = int(trained["tokens"].sum())
        tokens, drawn, done = (
            tokens + of_round, drawn + (row["drawn"] or 0), done + (row["steps"] or 0),
        )  # fmt: skip
        if version not in complete:
            continue
        values: dict[str, Any] = {
            name.name: row[name.column] for name in (*names.ROUNDS, *names.metrics())
        }
        for text, count in (
            why.filter(pl.col("policy_version") == version)
            .group_by("reason")
            .agg(pl.col("rollouts").sum())
            .iter_rows()
        ):
            values[names.reason(text)] = count
        for stage, seconds in mine.select("stage", "seconds").iter_rows():
            values[names.timing(stage)] = seconds
        values |= _together(trained)
        if of_round:
            values |= {"num_tokens": tokens, "perf/total_num_tokens": of_round}
        if training and version:
            values["epoch"] = drawn / training
        at = row["committed_at"] or datetime.now(UTC)
        yield Point("round", version, max(done - 1, 0), _known(values), at)


def _together(rows: pl.DataFrame) -> dict[str, Any]:
    """What the stages of a round took that train."""
    if rows.is_empty():
        return {}
    total = rows["seconds"].sum()
    values: dict[str, Any] = {"timing_s/step": total, "perf/time_per_step": total}
    held = {
        "cuda": "perf/max_memory_allocated_gb",
        "process": "perf/cpu_memory_used_gb",
    }
    for of, name in held.items():
        most: Any = rows.filter(pl.col("memory_of") == of)["peak_memory"].max()
        values[name] = None if most is None else most / GIB
    return values


def _known(values: dict[str, Any]) -> dict[str, float]:
    """What is absent is not told, and never a zero."""
    return {
        name: float(value)
        for name, value in values.items()
        if value is not None and math.isfinite(value)
    }
