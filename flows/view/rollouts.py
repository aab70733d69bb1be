"""What is asked of the table of rollouts: a query string, a record, and the SQL that it stands for.

Every state of the page is one `Asked`. Its SQL is what picks the rows, so the page can show it: the
same statement, given to `videoopd query`, answers with the same rollouts.
"""

from __future__ import annotations

import difflib
import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from opd_core.types import VideoOPDError

ROWS = 50
"""Of a page of the table."""
_OF_THE_FRAME = ("at", "part")
_LONGEST = 2_000
"""Characters of a text that is asked for."""
SORTS = {
    "policy_version": "round",
    "query": "sentence",
    "span_start": "truth, s",
    "predicted_start": "answer, s",
    "student_iou": "IoU",
    "teacher_iou": "teacher's IoU",
    "disagreement": "disagreement",
    "reverse_kl": "reverse KL",
    "tokens": "tokens",
    "finish_reason": "finish",
    "selected": "selected",
    "reason": "reason",
    "answered_by": "answered by",
}
"""Column of the view that the table may be sorted by -> its head."""
CITED = ("rollout_id", "query", "text", "student_iou", "teacher_iou", "disagreement", "reverse_kl",
         "selected", "reason")  # fmt: skip
"""What the SQL that is to be copied selects."""
UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Asked:
    """A state of the table. None and the defaults ask for nothing."""

    round: int | None = None
    """Number of the round that sampled, 1, 2, ..."""
    source: str | None = None
    """`answered_by`."""
    iou_from: float | None = None
    iou_below: float | None = None
    disagreement_from: float | None = None
    disagreement_below: float | None = None
    kl_from: float | None = None
    kl_below: float | None = None
    selected: str | None = None
    """`yes`, `no`, or `undecided` where focus has not been there."""
    reason: str | None = None
    finish: str | None = None
    span: str | None = None
    """`yes` or `no`: whether the answer holds a span."""
    text: str | None = None
    """Is in the sentence or the answer, whatever the case of its letters."""
    where: str | None = None
    """A condition in SQL over the view `trajectories`."""
    sort: str | None = None
    """A column of `SORTS`; with `-` the largest first. Absent values come last, rollouts that are
    alike by their ids. None: in the order in which they were written."""
    page: int = 1

    @classmethod
    def parse(cls, words: Sequence[tuple[str, str]]) -> Asked:
        """What a query string asks for; a word without a value asks for nothing.

        Raises `VideoOPDError` naming the word that is wrong.
        """
        given: dict[str, Any] = {}
        known = [field.name for field in fields(cls)]
        for name, value in words:
            if name in _OF_THE_FRAME:
                continue
            if name not in known:
                near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
                hint = f"did you mean {near[0]!r}? " if near else ""
                raise VideoOPDError(
                    f"the table of rollouts has no parameter {_told(name)}; {hint}they are:"
                    f" {', '.join(known)}"
                )
            if name in given:
                raise VideoOPDError(f"{name} is given twice; give it once")
            if value.strip():
                given[name] = _READ[name](name, value.strip())
        asked = cls(**given)
        for what in ("iou", "disagreement", "kl"):
            low, high = getattr(asked, f"{what}_from"), getattr(asked, f"{what}_below")
            if low is not None and high is not None and low >= high:
                raise VideoOPDError(
                    f"{what}_from={low:g} is not less than {what}_below={high:g}; give a smaller"
                    f" {what}_from"
                )
        return asked

    def words(self) -> dict[str, object]:
        """The query string that asks for this, without what is the default."""
        return {
            field.name: _word(value)
            for field in fields(self)
            if (value := getattr(self, field.name)) != field.default
        }

    def but(self, **changes: Any) -> Asked:
        """The same with some of it changed, on the first page."""
        return replace(self, **{"page": 1, **changes})

    def on(self, page: int) -> Asked:
        """The same list, another page of it."""
        return replace(self, page=page)

    @property
    def sorted_by(self) -> tuple[str | None, bool]:
        """(column, whether the largest is first)"""
        sort = self.sort or ""
        return sort.removeprefix("-") or None, sort.startswith("-")

    @property
    def filters(self) -> Mapping[str, object]:
        """What narrows the list, by name."""
        return {k: v for k, v in self.words().items() if k not in ("sort", "page")}

    def conditions(self) -> list[str]:
        """In SQL over the view `trajectories`, without `where`; all of them have to hold."""
        return list(_conditions(self))

    @property
    def order(self) -> str:
        """What to order by in SQL, but for the ids of those that are alike; empty: as written."""
        column, down = self.sorted_by
        return f"{column} {'DESC' if down else 'ASC'} NULLS LAST" if column else ""

    def sql(self) -> str:
        """One SELECT that answers with the rollouts of the page, in its order."""
        every = [*self.conditions(), *([in_brackets(self.where)] if self.where else [])]
        where = f"\nWHERE {' AND '.join(every)}" if every else ""
        order = f"\nORDER BY {self.order}, rollout_id" if self.order else ""
        skipped = f" OFFSET {(self.page - 1) * ROWS}" if self.page > 1 else ""
        return f"SELECT {', '.join(CITED)}\nFROM trajectories{where}{order}\nLIMIT {ROWS}{skipped}"


def in_brackets(condition: str) -> str:
    """A condition that ends where it ends, also with a comment in its last line.

    >>> in_brackets("tokens > 9")
    '(tokens > 9)'
    """
    return f"({condition}\n)" if "--" in condition else f"({condition})"


def text_literal(value: str) -> str:
    """
    >>> text_literal("the dog's")
    "'the dog''s'"
    """
    return "'" + value.replace("'", "''") + "'"


def _conditions(asked: Asked) -> Iterator[str]:
    if asked.round is not None:
        yield f"policy_version = {asked.round - 1}"
    for column, value in (("answered_by", asked.source), ("reason", asked.reason),
                          ("finish_reason", asked.finish)):  # fmt: skip
        if value is not None:
            yield f"{column} = {text_literal(value)}"
    for column, low, high in (
        ("student_iou", asked.iou_from, asked.iou_below),
        ("disagreement", asked.disagreement_from, asked.disagreement_below),
        ("reverse_kl", asked.kl_from, asked.kl_below),
    ):
        if low is not None:
            yield f"{column} >= {low!r}"
        if high is not None:
            yield f"{column} < {high!r}"
    if asked.selected is not None:
        yield {"yes": "selected", "no": "NOT selected"}.get(asked.selected, "selected IS NULL")
    if asked.span is not None:
        yield f"predicted_start IS {'NOT ' if asked.span == 'yes' else ''}NULL"
    if asked.text is not None:
        # polars' strpos takes a regular expression, and its LIKE has no escape.
        word = text_literal(asked.text.lower())
        found = (f"replace(lower({c}), {word}, '') <> lower({c})" for c in ("query", "text"))
        yield f"({' OR '.join(found)})"


def _word(value: object) -> object:
    return f"{value:g}" if isinstance(value, float) and float(f"{value:g}") == value else value


def _told(value: str) -> str:
    """A value of the query string in a sentence."""
    return repr(value if len(value) <= 60 else value[:59] + "…")


def _whole(name: str, value: str) -> int:
    if not re.fullmatch("[0-9]{1,9}", value) or int(value) < 1:
        raise VideoOPDError(f"{name}={_told(value)} is no whole number from 1 on; give one")
    return int(value)


def _real(name: str, value: str) -> float:
    try:
        number = float(value)
    except ValueError:
        number = math.nan
    if not math.isfinite(number) or abs(number) > 1e6:
        raise VideoOPDError(f"{name}={_told(value)} is no number of at most a million; give one")
    return number + 0.0  # -0.0 is 0.0


def _text(name: str, value: str) -> str:
    if len(value) > _LONGEST:
        raise VideoOPDError(f"{name} has {len(value):,} characters; give at most {_LONGEST:,}")
    return value


def _sort(name: str, value: str) -> str:
    if value.removeprefix("-") not in SORTS:
        raise VideoOPDError(
            f"{name}={_told(value)} is no column of the table; give one of {', '.join(SORTS)}, with"
            " a - before it for the largest first"
        )
    return value


def _one_of(*known: str) -> Callable[[str, str], str]:
    def read(name: str, value: str) -> str:
        if value not in known:
            raise VideoOPDError(f"{name}={_told(value)} is not known; give {' or '.join(known)}")
        return value

    return read


_READ = {
    **dict.fromkeys(("round", "page"), _whole),
    **{f"{what}_{end}": _real for what in ("iou", "disagreement", "kl") for end in
       ("from", "below")},
    **dict.fromkeys(("source", "reason", "finish", "text"), _text),
    "where": lambda name, value: _text(name, value.rstrip("; \n")) or None,
    "selected": _one_of("yes", "no", UNDECIDED),
    "span": _one_of("yes", "no"),
    "sort": _sort,
}  # fmt: skip
