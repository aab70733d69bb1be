"""What two runs of one config, data and seed must have in common, however often they were killed.

Every row, in every column that is no timing and no provenance, and the weights of every policy.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.tables.schemas import PROVENANCE, TABLES

if TYPE_CHECKING:
    from storage.runs.run import Run

VERSIONS = {"rollouts_version", "predictions_version", "scores_version"}
OWN = {"seconds", "stages", "engine_mismatch"} | VERSIONS | {column.name for column in PROVENANCE}
"""Columns that differ from run to run. engine_mismatch is measured once a stage execution, on the
first example which that one answers; a killed run has committed more often, so that its tables have
other versions."""

Rows = list[dict[str, Any]]


def contents(run: Run) -> dict[str, Rows]:
    """table -> its rows in the order of their keys; the run's own id reads RUN.

    Raises `VideoOPDError` where a checkpoint does not hold the weights that `updates` names.
    """
    tables: dict[str, Rows] = {}
    for name, spec in TABLES.items():
        columns = [column.name for column in spec.own_columns if column.name not in OWN]
        rows: Rows = run.scan(name).select(columns).collect().to_dicts()
        for row in rows:
            for step in row.get("steps", ()):
                del step["seconds"]
            if row.get("reused_from"):
                row["reused_from"] = row["reused_from"].replace(run.run_id, "RUN")
        tables[name] = sorted(rows, key=lambda row: _key(name, row))
    for row in tables["updates"]:
        run.policy(row["policy_version"])
    return tables


def differences(tables: dict[str, Rows], expected: dict[str, Rows]) -> list[str]:
    """What was lost, is there twice, or is not the same; a sentence a table, none where all is."""
    problems = []
    for name in TABLES:
        ours, theirs = ([_key(name, row) for row in rows[name]] for rows in (tables, expected))
        if twice := len(ours) - len(set(ours)):
            problems.append(f"{name} has {twice} rows twice")
        if lost := set(theirs) - set(ours):
            problems.append(f"{name} has lost {len(lost)} rows, {min(lost)} among them")
        if added := set(ours) - set(theirs):
            problems.append(f"{name} has {len(added)} rows too many, {min(added)} among them")
        if ours == theirs:
            for key, row, other in zip(ours, tables[name], expected[name], strict=True):
                if odd := [column for column in other if row[column] != other[column]]:
                    problems.append(f"{name}, {key}: {odd[0]} differs")
                    break
    return problems


def _key(name: str, row: dict[str, Any]) -> tuple[str, ...]:
    return tuple(str(row[column]) for column in TABLES[name].key)
