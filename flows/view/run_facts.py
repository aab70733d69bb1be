"""What the run page says beside its curves: policies and where they come from."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from storage.runs.run import Run


@dataclass(frozen=True, slots=True)
class PolicyLine:
    """A policy in the lineage of a run."""

    version: int
    weights_hash: str
    parent_version: int | None
    parent_hash: str | None
    """None: the base, which has none."""
    written_at: datetime | None
    """UTC, of the row that committed it."""
    tags: tuple[str, ...] = ()
    let_go: str | None = None
    """When and why its weights were let go; None: they are there."""


def lineage(run: Run) -> list[PolicyLine]:
    """The policies in force, newest first, down to the base."""
    marks = {mark.version: mark for mark in run.checkpoints() if mark.in_force}
    columns = ("policy_version", "policy_hash", "parent_version", "parent_hash", "written_at")
    rows = run.updates().select(columns).sort("policy_version", descending=True).collect()
    made = []
    for version, policy_hash, parent, parent_hash, at in rows.iter_rows():
        mark = marks.get(version)
        gone = mark.let_go.told() if mark and mark.let_go else None
        tags = mark.tags if mark else ()
        made.append(PolicyLine(version, policy_hash, parent, parent_hash, at, tags, gone))
    base = run.committed(0)
    return [*made, PolicyLine(0, base.weights_hash, None, None, None)]
