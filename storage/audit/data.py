"""The link of the audit that changing annotations add: a round drew what the files held then."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

from opd_core.types import DataChange
from storage.audit.links import BrokenLink, Checked
from storage.tables.present import ADDED

if TYPE_CHECKING:
    from storage.runs.run import Run


def draws(run: Run) -> Checked:
    """Every first draw of a round took examples that were training annotations at that time.

    A change that was found while the round was under way may have come after its draw. A draw that
    was forced later took what the files held later.
    """
    import polars as pl

    history = _history(run)
    began = dict(run.examples().select("example_id", "split").collect().iter_rows())
    rows = run.scan("draws", superseded=True).filter(pl.col("take") == 0)
    count = 0
    for version, example_id in rows.select("policy_version", "example_id").collect().iter_rows():
        where = f"draws, {example_id} of round {version + 1}"
        if example_id not in began:
            raise BrokenLink(f"{where}: there is no such example")
        split: str | None = began[example_id]
        changes = history.get(example_id, [])
        if changes and changes[0].change == ADDED:
            split = None
        splits = []
        for change in changes:
            if change.newest_policy < version:
                split = change.split
            elif change.newest_policy == version:
                splits.append(change.split)
        if "train" not in (split, *splits):
            raise BrokenLink.at(where, "its split when it was drawn", split, "train")
        count += 1
    notes = Counter(c.change for changes in history.values() for c in changes)
    counts = ", ".join(f"{n:,} {name}" for name, n in sorted(notes.items()))
    return Checked(
        count, "draws", (f"annotations since the run began: {counts}",) if counts else ()
    )


def _history(run: Run) -> dict[str, list[DataChange]]:
    """item id -> what became of it, in order."""
    history: dict[str, list[DataChange]] = {}
    rows = sorted(run.read("data_changes", DataChange), key=lambda c: c.sequence)
    for number, sequence in enumerate(dict.fromkeys(c.sequence for c in rows), start=1):
        if sequence != number:
            raise BrokenLink.at("data_changes", "the next sequence", sequence, number)
    for change in rows:
        history.setdefault(change.item_id, []).append(change)
    return history
