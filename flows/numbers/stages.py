"""One row a stage of a round: seconds, tokens, memory, rows."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

import polars as pl

from flows.numbers import frames
from flows.stage import uses
from flows.stage.costs import COSTS_FILE, read_costs
from opd_core.types import StageUse
from storage.stages import STAGES, place, round_number
from storage.tables.schemas import TABLES

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class StageOfRound:
    """What a stage adds to its `StageUse`."""

    policy_version: Annotated[int, "That the stage worked with: evaluate with the made one."]
    round: Annotated[int, "Number of the round: of the policy that it makes; the base is in 0."]
    cpu_seconds: Annotated[
        float | None,
        "CPU seconds of the stage and its children; null where none were recorded "
        "(`videoopd study` and benches do).",
    ]
    rows: Annotated[int | None, "In force in its table; null where those are of no round."]


def columns() -> dict[str, str]:
    """Column -> what it means."""
    return frames.meanings(StageOfRound) | frames.meanings(StageUse)


def stages(run: Run) -> pl.DataFrame:
    """The columns of `columns()`, by round and stage, the executions of a stage together.

    Of the running round those that have ended. What the last evaluation took is known once the
    next round is committed, and before that as of now.
    """
    took = {
        (use["stage"], version): use
        for version, of_round in run.updates().select("parent_version", "stages").collect().rows()
        for use in of_round or ()
    }
    if run.round is None:
        newest = run.newest_version()
        took |= {(u.stage, newest): asdict(u) for u in uses.of_round(run.path, newest)}
    cpu = _cpu_seconds(run)
    counts = _rows(run)
    rows: list[dict[str, Any]] = []
    for stage, version in sorted(took, key=lambda k: (round_number(*k), place(k[0]))):
        key = (stage, version)
        rows.append(
            took[key]
            | {
                "policy_version": version,
                "round": round_number(stage, version),
                "cpu_seconds": cpu.get(key),
                "rows": counts.get(key),
            }
        )
    schema = frames.schema(StageOfRound) | frames.schema(StageUse)
    return pl.DataFrame(rows, schema=schema, orient="row")


def _cpu_seconds(run: Run) -> dict[tuple[str, int], float]:
    """(stage, its policy_version) -> CPU seconds of all its executions that were recorded."""
    spent: dict[tuple[str, int], float] = {}
    for cost in read_costs(run.path / COSTS_FILE):
        key = (cost.stage, cost.policy_version)
        spent[key] = spent.get(key, 0.0) + cost.cpu_seconds
    return spent


def _rows(run: Run) -> dict[tuple[str, int], int]:
    """(stage, its policy_version) -> rows in force."""
    counts: dict[tuple[str, int], int] = {}
    for name, spec in TABLES.items():
        if spec.writer not in STAGES or spec.round_column is None:
            continue
        of_round = run.scan(name).group_by(spec.round_column).len().collect()
        for version, count in of_round.iter_rows():
            key = (spec.writer, version)
            counts[key] = max(count, counts.get(key, 0))
    return counts
