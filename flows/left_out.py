"""What a run could not use, counted by kind of reason.

A reason is a sentence with the numbers and names of its case; what is alike but for those is one
kind. Of a kind the first reason is shown whole.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import polars as pl

if TYPE_CHECKING:
    from storage.run import Run

_OF_THE_CASE = re.compile(r"'[^']*'|\"[^\"]*\"|\S*[/\\]\S*|\S+\.\w{2,5}(?=[\s,;:)]|$)|-?\d[\d.,:]*")
"""Quoted texts, paths, names of files, numbers."""


@dataclass(frozen=True, slots=True)
class LeftOut:
    """Items that a stage gave up for one kind of reason."""

    stage: str
    kind: str
    count: int
    first: str
    """The first one's reason."""

    def line(self) -> str:
        first = "" if self.count == 1 else "the first: "
        return f"{self.count:,} in {self.stage}: {first}{self.first}"


def kind_of(reason: str) -> str:
    """
    >>> kind_of("a.mp4 has 3 of 12 frames; copy it again") == kind_of("b/c.mp4 has 7 of 9 frames; "
    ... "copy it again")
    True
    """
    return _OF_THE_CASE.sub("…", reason)


def left_out(run: Run, where: pl.Expr | None = None) -> list[LeftOut]:
    """By stage and kind of reason, most first; `where` picks rows of `quarantine`."""
    rows = run.quarantine() if where is None else run.quarantine().filter(where)
    found: dict[tuple[str, str], LeftOut] = {}
    for stage, reason in rows.select("stage", "reason").collect().iter_rows():
        key = (stage, kind_of(reason))
        known = found.setdefault(key, LeftOut(*key, 0, reason))
        found[key] = replace(known, count=known.count + 1)
    return sorted(found.values(), key=lambda item: (-item.count, item.stage, item.kind))
