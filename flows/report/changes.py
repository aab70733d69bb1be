"""The sentences whose answers became better and worse by most, with what there was to be seen."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import polars as pl

from flows.charts.spans import SpanRow, span_bars
from flows.charts.svg import Svg
from flows.report.frames import Frame, strip
from flows.report.side import Side
from opd_core.types import GroundingExample, Span

EACH = 4
"""Sentences that rose most, and as many that fell most."""
LETTERS = 400
"""Of a sentence or an answer; what is longer is cut."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a policy said."""

    who: str
    text: str
    span: Span | None
    iou: float


@dataclass(frozen=True, slots=True)
class Change:
    """A sentence that two policies answered."""

    example_id: str
    query: str
    video: str
    source: str
    before: Answer
    after: Answer
    difference: float
    """Of the IoUs, after - before."""
    frames: tuple[Frame, ...]
    bars: Svg


@dataclass(frozen=True, slots=True)
class Changes:
    """Between which two, and the sentences."""

    before: str
    after: str
    better: tuple[Change, ...]
    worse: tuple[Change, ...]
    compared: int
    improved: int
    worsened: int


def changes(sides: Sequence[Side]) -> Changes | None:
    """Compare the first and the last policy of one side, or the last ones of two.

    None where there are no two that answered the same sentences.
    """
    if any(not side.evaluated for side in sides):
        return None
    if len(sides) == 2:
        a, b = ((side, side.evaluated[-1]) for side in sides)
        names = tuple(f"{side.name}, policy {version}" for side, version in (a, b))
    else:
        a, b = ((sides[0], sides[0].evaluated[at]) for at in (0, -1))
        if a == b:
            return None
        names = tuple(f"policy {version}" for _, version in (a, b))
    both = _answers(*a).join(_answers(*b), on="example_id", suffix="_b").collect()
    if both.is_empty():
        return None
    ranked = both.with_columns(apart=pl.col("iou_b") - pl.col("iou")).sort("apart", "example_id")
    worse = ranked.filter(pl.col("apart") < 0)
    better = ranked.filter(pl.col("apart") > 0).reverse()
    shown = [*better.head(EACH).to_dicts(), *worse.head(EACH).to_dicts()]
    wanted = pl.col("example_id").is_in([row["example_id"] for row in shown])
    examples = {one.example_id: one for one in b[0].run.present_examples(wanted)}
    made = [_change(b[0], examples[row["example_id"]], row, (names[0], names[1])) for row in shown]
    count = min(EACH, better.height)
    return Changes(
        names[0], names[1], tuple(made[:count]), tuple(made[count:]),
        ranked.height, better.height, worse.height,
    )  # fmt: skip


def _answers(side: Side, version: int) -> pl.LazyFrame:
    mine = side.run.present_evaluations().filter(pl.col("policy_version") == version)
    return mine.select(
        "example_id", "text", "iou", start="predicted_start", end="predicted_end"
    )  # fmt: skip


def _change(
    side: Side, example: GroundingExample, row: dict[str, object], names: tuple[str, str]
) -> Change:
    before, after = (_answer(row, name, end) for name, end in zip(names, ("", "_b"), strict=True))
    bars = [SpanRow("truth", "truth", *span) for span in example.spans]
    for answer in (before, after):
        start, end = answer.span or (None, None)
        bars.append(SpanRow(answer.who, "student", start, end))
    return Change(
        example_id=example.example_id,
        query=_cut(example.query),
        video=example.video_path,
        source=example.source,
        before=before,
        after=after,
        difference=after.iou - before.iou,
        frames=strip(side, example.video_path, example.spans),
        bars=span_bars(bars, duration=example.duration, title="Truth and answers", width=440),
    )


def _answer(row: dict[str, object], who: str, suffix: str) -> Answer:
    text, iou, start, end = (row[f"{name}{suffix}"] for name in ("text", "iou", "start", "end"))
    span = Span(start, end) if isinstance(start, float) and isinstance(end, float) else None
    assert isinstance(text, str) and isinstance(iou, float)
    return Answer(who, _cut(text), span, iou)


def _cut(text: str) -> str:
    return text if len(text) <= LETTERS else text[:LETTERS] + "…"
