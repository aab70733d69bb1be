"""What a run could not use, counted by kind of reason.

A reason is a sentence with the numbers and names of its case; what is alike but for those is one
kind. Of a kind the first reason is shown whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

from flows.stage.read_data import is_annotated_now
from opd_core.faults import NEXT_ROUND, ONE_MORE_ROUND

if TYPE_CHECKING:
    from storage.runs.run import Run

_OF_THE_CASE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\S+\.\w{2,5}(?=[\s,;:)]|$)|-?\d[\d.,:]*")
"""Quoted texts, paths, names of files, numbers."""


@dataclass(frozen=True, slots=True)
class SameReason:
    """Items that a stage gave up for one kind of reason."""

    stage: str
    alike: str
    """Their reasons without what is of the case."""
    count: int
    first: str
    """The first one's reason."""
    tried_again: bool
    """Whether the next round tries them again."""

    def reason(self) -> str:
        again = "; tried again in the next round" if self.tried_again else ""
        return ("" if self.count == 1 else "the first: ") + self.first + again

    def line(self) -> str:
        return f"{self.count:,} in {self.stage}: {self.reason()}"


def without_its_case(reason: str) -> str:
    """
    >>> without_its_case("a.mp4 has 3 of 9 frames") == without_its_case("b.mp4 has 7 of 8 frames")
    True
    """
    return _OF_THE_CASE.sub("…", reason)


def left_out(run: Run, where: pl.Expr | None = None) -> list[SameReason]:
    """Items given up, by stage and kind of reason, most first; `where` picks rows of `quarantine`.

    Of annotations, those that the files hold still.
    """
    rows = run.quarantine() if where is None else run.quarantine().filter(where)
    current = is_annotated_now(run)
    by_reason: dict[tuple[str, str, bool], SameReason] = {}
    columns = ("item_id", "stage", "reason", "kind")
    for item, stage, reason, kind in rows.select(columns).collect().iter_rows():
        if stage == "import" and not current(item):
            continue
        again = kind in NEXT_ROUND | ONE_MORE_ROUND
        key = (stage, without_its_case(reason), again)
        known = by_reason.setdefault(key, SameReason(*key[:2], 0, reason, again))
        by_reason[key] = replace(known, count=known.count + 1)
    return sorted(by_reason.values(), key=lambda item: (-item.count, item.stage, item.alike))
