"""Means of answers with their intervals: over all examples, over some, of two that compare."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import polars as pl

from flows.evaluation.answers import Answers
from flows.numbers.accuracy import intervals
from opd_core.spans.bootstrap import Estimate
from opd_core.spans.metrics import per_example
from opd_core.types import VideoOPDError

ALL = "all"


@dataclass(frozen=True, slots=True)
class Group:
    """Some of the examples: `all`, or those of one source or duration."""

    name: str
    examples: int
    videos: int
    metrics: dict[str, Estimate]
    """By the names of `per_example`."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """Two that answered the same examples."""

    a: str
    b: str
    shared: int
    only_a: int
    only_b: int
    of_a: Group
    of_b: Group
    difference: Group
    """a - b."""


def groups(answers: Answers, by: str | None = None) -> Iterator[Group]:
    """All examples, then those of each `source` or `duration`, short ones first."""
    yield _group(ALL, answers.rows)
    if by is None:
        return
    order = "seconds" if by == "duration" else by
    for (name,), rows in answers.rows.sort(order, "example_id").group_by(by, maintain_order=True):
        yield _group(str(name), rows)


def _group(name: str, rows: pl.DataFrame) -> Group:
    return Group(name, rows.height, rows["video"].n_unique(), intervals(rows))


def numbers(group: Group) -> dict[str, float]:
    """Every metric with the ends of its interval, flat: `strict_miou`, `strict_miou_low`, ..."""
    flat: dict[str, float] = {}
    for name, estimate in group.metrics.items():
        ends = {"": estimate.value, "_low": estimate.low, "_high": estimate.high}
        flat |= {f"{name}{end}": value for end, value in ends.items() if value is not None}
    return flat


def compare(a: Answers, b: Answers) -> Comparison:
    """Paired on the examples that both answered. Raises `VideoOPDError` when they share none."""
    names = list(per_example())
    rows_a, rows_b = (side.rows.cast(dict.fromkeys(names, pl.Float64)) for side in (a, b))
    both = rows_a.join(rows_b.select("example_id", *names), on="example_id", suffix="_b")
    both = both.sort("example_id")
    if both.is_empty():
        raise VideoOPDError(
            f"{a.who} ({rows_a.height} examples) and {b.who} ({rows_b.height}) share no example; "
            "evaluate both on the same data.eval"
        )
    other = both.with_columns(pl.col(f"{name}_b").alias(name) for name in names)
    apart = both.with_columns(pl.col(name) - pl.col(f"{name}_b") for name in names)
    of_a, of_b, difference = (_group(ALL, rows) for rows in (both, other, apart))
    only = rows_a.height - both.height, rows_b.height - both.height
    return Comparison(a.who, b.who, both.height, *only, of_a, of_b, difference)
