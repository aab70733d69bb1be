"""Spans of a video on one time axis: the truth, the student's answers, the teacher's."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from flows.charts.axis import Axis, finite, linear, number, shown_labels
from flows.charts.svg import Svg, chart, element, hover, shortened, text, text_width


@dataclass(frozen=True)
class SpanRow:
    """A row: who says it, from which second to which; without both, an answer without a span."""

    label: str
    kind: Literal["truth", "student", "teacher"]
    start: float | None
    end: float | None
    link: str | None = None


def span_bars(
    rows: Sequence[SpanRow], *, duration: float | None, title: str, width: float = 400
) -> Svg:
    """Draws a bar a row over the seconds of the video, cut where the video ends.

    Without a duration the axis reaches as far as the spans. A row without a span says so; of one
    that lies outside the video a thin mark is left at the end where it would begin.
    """
    spans = [_known(row) for row in rows]
    seconds = finite(duration)
    if seconds is None or seconds <= 0:
        seconds = max((span[1] for span in spans if span), default=0.0)
    marks = linear([0.0, max(seconds, 0.0) or 1.0], marks=6)
    axis = Axis(0.0, max(seconds, 0.0) or 1.0, (), ())
    left = 8 + min(max((text_width(row.label) for row in rows), default=0.0), width * 0.4)
    right, top = width - 16, 24.0
    bottom = top + 20 * len(rows) + 4
    parts = [
        element("rect", x=left, width=right - left, y=top, height=bottom - top, class_="video")
    ]
    longest = max(text_width(label) for label in marks.labels) + 28
    for i in shown_labels(len(marks.labels), int((right - left) / longest)):
        if marks.ticks[i] <= axis.high:
            x, label = axis.at(marks.ticks[i], left, right), f"{marks.labels[i]} s"
            parts.append(element("line", x1=x, x2=x, y1=top, y2=bottom, class_="grid"))
            parts.append(text(label, x, bottom + 14, text_anchor="middle", class_="tick"))
    for i, (row, span) in enumerate(zip(rows, spans, strict=True)):
        y = top + 20 * i + 3
        words = f"{row.label}: " + (
            f"{number(span[0])} to {number(span[1])} s" if span else "no span"
        )
        label = text(shortened(row.label, left - 8), left - 5, y + 12, text_anchor="end")
        if span is None:
            bar = text("no span", left + 4, y + 12, class_="muted")
        else:
            begin, end = (axis.at(at, left, right) for at in span)
            begin = min(begin, max(end - 2, left))
            wide = max(end - begin, 2.0)
            bar = element(
                "rect", x=begin, width=wide, y=y, height=14, rx=2, class_=f"span {row.kind}"
            )
        inside = (hover(words), label, bar)
        if row.link is None:
            parts.append(element("g", *inside))
        else:
            parts.append(element("a", *inside, href=row.link, aria_label=words))
    says = "; ".join(
        f"{row.label} {number(span[0])} to {number(span[1])} s" if span else f"{row.label} no span"
        for row, span in zip(rows, spans, strict=True)
    )
    links = any(row.link is not None for row in rows)
    return chart("spans", title, says or "no spans", width, bottom + 20, *parts, links=links)


def _known(row: SpanRow) -> tuple[float, float] | None:
    start, end = finite(row.start), finite(row.end)
    return None if start is None or end is None else (start, end)
