"""The link of the audit that reruns add: takes are accounted for, nothing stands on old ones."""

from __future__ import annotations

from typing import TYPE_CHECKING

from storage.audit.links import BrokenLink, Checked, rounds
from storage.stages import RESCORE, round_number
from storage.tables.schemas import TABLES
from storage.tables.takes import take_of

if TYPE_CHECKING:
    from storage.runs.run import Run


def takes(run: Run) -> Checked:
    """Takes follow one another, each row is of one that began, what they superseded is still there,
    and no committed round was computed from superseded rows."""
    import polars as pl

    reruns = run.takes().reruns
    newest: dict[tuple[str, int], int] = {}
    rows = run.rows_by_take()
    notes = []
    for number, rerun in enumerate(reruns, start=1):
        where = f"reruns, {take_of(rerun)}"
        if rerun.sequence != number:
            raise BrokenLink.at(where, "sequence", rerun.sequence, number)
        key = (rerun.stage, rerun.policy_version)
        before = newest.get(key, 0)
        if rerun.new_take != before + 1:
            raise BrokenLink.at(where, "new_take", rerun.new_take, before + 1)
        if (there := rows.get((*key, before), 0)) != rerun.superseded:
            raise BrokenLink.at(where, "the number of rows it superseded", there, rerun.superseded)
        newest[key] = rerun.new_take
        notes.append(f"{take_of(rerun)} ({rerun.because}): {rerun.superseded:,} rows superseded")
    for stage, version, take in sorted(rows):
        if take > newest.get((stage, version), 0):
            where = f"{stage} of round {round_number(stage, version)}"
            raise BrokenLink(f"{where}: it has rows of take {take}, which no row of reruns began")
    for name, spec in TABLES.items():
        if spec.round_column is None:
            odd = run.scan(name).filter(pl.col("take") != 0).select(*spec.key, "take").head(1)
            for row in odd.collect().iter_rows():
                raise BrokenLink.at(f"{name}, {row[:-1]}", "take", row[-1], 0)
    committed = {row["parent_version"] for row in rounds(run)}
    for stale in run.takes().stale():
        if stale.policy_version in committed and stale.stage != RESCORE.name:
            raise BrokenLink(f"{stale.reason()}; run {stale.stage} of round {stale.round} again")
        notes.append(f"stale: {stale.reason()}")
    return Checked(len(reruns), "reruns", tuple(notes))
