"""Everything about an example that has a place in time, as rows of one axis. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from flows.view.answers import Answer, Prediction
from flows.view.trajectory import Trajectory
from opd_core.types import Span

Kind = Literal["truth", "student", "teacher", "other"]
MOST_TICKS = 8
STEPS = (0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 20.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1200.0, 3600.0)
"""Seconds between two marks that people count in."""


@dataclass(frozen=True, slots=True)
class Bar:
    """A span on the axis."""

    start: float
    end: float
    """Both in seconds."""
    x: float
    width: float
    """Both in percent of the axis, inside of it."""


@dataclass(frozen=True, slots=True)
class Row:
    """One answer, or the truth."""

    kind: Kind
    label: str
    note: str
    """What else is said of it: its IoU."""
    bars: tuple[Bar, ...]
    """None: an answer without a span."""
    shown: bool = False
    """Whether it is the rollout that the page is about."""


def rows(trajectory: Trajectory, duration: float, other: Sequence[Answer] = ()) -> list[Row]:
    """The truth, every rollout of the group, every teacher's answers, then `other` answers."""
    made = []
    if trajectory.example is not None:
        made.append(Row("truth", "truth", "", bars(trajectory.example.spans, duration)))
    for answer in trajectory.group:
        is_it = answer.rollout_id == trajectory.rollout.rollout_id
        name = f"{answer.by} {answer.sample_index}" if len(trajectory.group) > 1 else answer.by
        made.append(_row("student", name, answer.span, answer.iou, duration, is_it))
    for prediction, name in zip(
        trajectory.predictions, _names(trajectory.predictions), strict=True
    ):
        made.append(_row("teacher", name, prediction.span, prediction.iou, duration))
    for answer in other:
        name = f"compared: policy {answer.policy_version}"
        made.append(_row("other", name, answer.span, answer.iou, duration))
    return made


def percent(seconds: float, duration: float) -> float:
    """
    >>> percent(3.0, 12.0), percent(13.0, 12.0)
    (25.0, 100.0)
    """
    return round(100 * min(max(seconds / duration, 0.0), 1.0), 3)


def ticks(duration: float) -> list[tuple[float, str]]:
    """Percent and label of the marks below the axis.

    >>> ticks(12.0)[:3]
    [(0.0, '0'), (16.667, '2'), (33.333, '4')]
    """
    step = next((s for s in STEPS if duration / s <= MOST_TICKS), duration / MOST_TICKS)
    count = int(duration / step + 1e-9)
    return [(percent(n * step, duration), _clock(n * step)) for n in range(count + 1)]


def _clock(seconds: float) -> str:
    if seconds < 60:
        return f"{seconds:g}"
    return f"{int(seconds // 60)}:{int(seconds % 60):02d}"


def _row(
    kind: Kind, label: str, span: Span | None, iou: float, duration: float, shown: bool = False
) -> Row:
    spans = () if span is None else (span,)
    return Row(kind, label, f"IoU {iou:.2f}", bars(spans, duration), shown)


def bars(spans: Iterable[Span], duration: float) -> tuple[Bar, ...]:
    """Spans as bars of an axis of `duration` seconds."""

    def bar(span: Span) -> Bar:
        x, end = percent(span.start, duration), percent(span.end, duration)
        return Bar(span.start, span.end, x, round(max(end - x, 0.3), 3))

    return tuple(bar(span) for span in spans)


def _names(predictions: Sequence[Prediction]) -> Iterator[str]:
    """`teacher 1`, with the question's hash where a teacher was asked in several ways."""
    ways = {p.teacher: {q.question for q in predictions if q.teacher == p.teacher}
            for p in predictions}  # fmt: skip
    for p in predictions:
        asked = f" asked {p.question[:6]}" if len(ways[p.teacher]) > 1 else ""
        yield f"{p.teacher} {p.index + 1}{asked}"
