"""Spans: the temporal IoU, and how an answer is written and read.

Parsing takes the first span in the text, as the evaluation protocols do; an answer without one is
`None`, and whoever scores it says what that counts for.
"""

from __future__ import annotations

import math
import re

from opd_core.types import Span

_NUMBER = r"(?<![\d.:])(\d+(?:\.\d+)?)"
_CLOCK = r"(?<![\d.:])(\d+(?::\d{1,2}){1,2}(?:\.\d+)?)"
_UNIT = r"\s*(?:s|sec|secs|seconds?)?\s*"
_JOIN = r"(?:-|–|—|to|and|until|,)"
_QUOTE = re.compile(r"[\"'{}]")
_KEY = re.compile(r"\b(?:start|end)(?:_time)?\s*[:=]", re.IGNORECASE)
_SPAN_PATTERNS = tuple(
    re.compile(_value + _UNIT + _JOIN + r"\s*" + _value + r"(?![\d:])", re.IGNORECASE)
    for _value in (_CLOCK, _NUMBER)
)


def temporal_iou(a: Span, b: Span) -> float:
    """Intersection over union of two spans, in [0, 1]; 0 where they only touch."""
    intersection = min(a.end, b.end) - max(a.start, b.start)
    if intersection <= 0.0:
        return 0.0
    return intersection / (max(a.end, b.end) - min(a.start, b.start))


def round_span(span: Span) -> Span:
    """Both ends to whole seconds, halves up (protocol `timelens`); may become empty."""
    return Span(math.floor(span.start + 0.5), math.floor(span.end + 0.5))


def answer_iou(predicted: Span | None, *truths: Span) -> float:
    """IoU by the rule of every protocol: an answer without a span counts 0.

    Where a sentence is true several times, the span that the answer fits best counts, which is how
    QVHighlights counts R1.
    """
    return 0.0 if predicted is None else max(temporal_iou(predicted, truth) for truth in truths)


def format_answer(span: Span) -> str:
    """The answer as the prompt asks for it: `The event happens in 3.0 - 7.5 seconds`."""
    return f"The event happens in {span.start:.1f} - {span.end:.1f} seconds"


def parse_span(text: str) -> Span | None:
    """The first span in an answer, or None when there is none or it ends before it begins.

    Reads `3.0 - 7.5 seconds`, `from 3s to 7.5s`, `between 3 and 7`, `[3, 7.5]`, `00:03 - 01:07.5`
    and `{"start": 3, "end": 7}`.
    """
    flat = _KEY.sub(" ", _QUOTE.sub(" ", text))
    matches = [m for pattern in _SPAN_PATTERNS if (m := pattern.search(flat))]
    if not matches:
        return None
    first = min(matches, key=lambda m: m.start())
    start, end = (_seconds(value) for value in first.groups())
    return Span(start, end) if math.isfinite(end) and start < end else None


def _seconds(clock: str) -> float:
    total = 0.0
    for part in clock.split(":"):
        total = total * 60.0 + float(part)
    return total
